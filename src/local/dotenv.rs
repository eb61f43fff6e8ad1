//! Variables that a job hands to those after it in a `dotenv` report
//! (GitLab: `Ci::ParseDotenvArtifactService`).

use std::io::Read;

use flate2::read::MultiGzDecoder;

/// More than any such report is good for; GitLab allows 5 KiB.
const MAX_SIZE: u64 = 64 * 1024;

/// Reads a report as it was uploaded, gzipped or plain. The error is for the job's author.
pub(crate) fn read(mut file: impl Read, gzipped: bool) -> Result<Vec<(String, String)>, String> {
    let mut text = Vec::new();
    let read = if gzipped {
        MultiGzDecoder::new(file).take(MAX_SIZE + 1).read_to_end(&mut text)
    } else {
        file.by_ref().take(MAX_SIZE + 1).read_to_end(&mut text)
    };
    read.map_err(|error| format!("the dotenv report cannot be read: {error}"))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(format!("the dotenv report is larger than {MAX_SIZE} bytes"));
    }
    let text = String::from_utf8(text).map_err(|_| "the dotenv report is not UTF-8".to_owned())?;
    parse(&text)
}

/// `KEY=VALUE` lines; quotes are part of the value, there are no comments or empty lines.
fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut out: Vec<(String, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| format!("line {} of the dotenv report: {what}", number + 1);
        let (key, value) = line.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(wrong("the name has other characters than letters, digits and `_`"));
        }
        out.retain(|(known, _)| known != key);
        out.push((key.to_owned(), value.to_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_report_is_read_as_the_helper_uploads_it() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"A=1\nB = two words \nA=3=4\n").unwrap();
        let file = encoder.finish().unwrap();
        let expected =
            [("B", "two words"), ("A", "3=4")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(read(&file[..], true).unwrap(), expected);
        assert_eq!(read(&b"X=\"q\""[..], false).unwrap(), [("X".to_owned(), "\"q\"".to_owned())]);
    }

    #[test]
    fn a_report_gitlab_would_refuse_is_refused() {
        for text in ["A", "A=1\n\nB=2\n", "# c=1\n", "a-b=1\n", "=1\n"] {
            assert!(read(text.as_bytes(), false).is_err(), "{text:?}");
        }
        let large = format!("A={}", "x".repeat(70_000));
        assert!(read(large.as_bytes(), false).unwrap_err().contains("larger"));
        assert_eq!(parse("A=1\nB\n").unwrap_err(), "line 2 of the dotenv report: there is no `=`");
    }
}
