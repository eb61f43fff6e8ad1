//! Takes an uploaded artifact from a form to a file: in a stream, with a hash, and under its name
//! only when it is complete.

use std::path::{Path, PathBuf};

use axum::body::Body;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::multipart::{Multipart, MultipartError, Piece};

/// Why an upload fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The sender's form is broken.
    #[error(transparent)]
    Form(#[from] MultipartError),
    /// The sender stopped in the middle.
    #[error("the upload ended early")]
    Incomplete,
    /// Nothing in it is called `file`.
    #[error("the form has no file")]
    NoFile,
    /// The file cannot be written.
    #[error("cannot write to `{}`", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A complete file that has no name yet; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Upload {
    file: NamedTempFile,
    /// Name the sender gave, without folders.
    pub(crate) filename: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Hash.
    pub(crate) sha256: [u8; 32],
}

impl Upload {
    /// Receives the field `file` of a form into the directory `into`.
    pub(crate) async fn receive(
        content_type: &str,
        body: Body,
        into: &Path,
    ) -> Result<Self, UploadError> {
        let write = |source| UploadError::Write { path: into.to_owned(), source };
        let mut parser = Multipart::new(content_type)?;
        std::fs::create_dir_all(into).map_err(write)?;
        let file = tempfile::Builder::new().prefix(".upload-").tempfile_in(into).map_err(write)?;
        let mut writer = tokio::fs::File::from_std(file.reopen().map_err(write)?);
        let mut upload = Self { file, filename: String::new(), size: 0, sha256: [0; 32] };
        let (mut digest, mut found, mut inside, mut ended) = (Sha256::new(), false, false, false);
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            parser.feed(&chunk.map_err(|_| UploadError::Incomplete)?);
            while let Some(piece) = parser.next()? {
                match piece {
                    Piece::Start { name, filename } => {
                        inside = name == "file" && !found;
                        if inside {
                            found = true;
                            upload.filename = base_name(&filename);
                        }
                    }
                    Piece::Data(data) if inside => {
                        digest.update(&data);
                        upload.size += data.len() as u64;
                        writer.write_all(&data).await.map_err(write)?;
                    }
                    Piece::Data(_) => {}
                    Piece::End => ended = true,
                }
            }
        }
        if !ended {
            return Err(UploadError::Incomplete);
        }
        if !found {
            return Err(UploadError::NoFile);
        }
        writer.flush().await.map_err(write)?;
        upload.sha256 = digest.finalize().into();
        Ok(upload)
    }

    /// The content.
    pub(crate) fn file(&self) -> std::io::Result<std::fs::File> {
        self.file.reopen()
    }

    /// Gives the file its name.
    pub(crate) fn keep(self, path: &Path) -> Result<(), UploadError> {
        let write = |source| UploadError::Write { path: path.to_owned(), source };
        // Temporary files are for their owner alone; artifacts are not.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let readable = std::fs::Permissions::from_mode(0o644);
            self.file.as_file().set_permissions(readable).map_err(write)?;
        }
        self.file.persist(path).map_err(|error| write(error.error)).map(drop)
    }
}

/// The last part of a name, or `artifact`.
fn base_name(filename: &str) -> String {
    let name = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let usable = !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    if usable { name.to_owned() } else { "artifact".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_complete_upload_leaves_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let kind = "multipart/form-data; boundary=b";
        let form = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"../../x.zip\"\r\n\r\ncontent";
        let cut = Upload::receive(kind, Body::from(form), dir.path()).await;
        assert!(matches!(cut, Err(UploadError::Incomplete)));
        let none = Upload::receive(kind, Body::from("--b--"), dir.path()).await;
        assert!(matches!(none, Err(UploadError::NoFile)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

        let whole = Body::from(format!("{form}\r\n--b--\r\n"));
        let upload = Upload::receive(kind, whole, dir.path()).await.unwrap();
        assert_eq!((upload.filename.as_str(), upload.size), ("x.zip", 7));
        assert_eq!(upload.sha256[..], Sha256::digest(b"content")[..]);
        upload.keep(&dir.path().join("x.zip")).unwrap();
        assert_eq!(std::fs::read(dir.path().join("x.zip")).unwrap(), b"content");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
