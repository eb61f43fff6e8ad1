//! Compression of whole files and of parts of files, so that one large file keeps every core busy.
//!
//! Parts of a deflate stream each begin with the dictionary of what came before and end on a byte
//! boundary with a sync flush, so that written after one another they are one stream. Parts of a
//! zstd stream are frames of their own; a reader takes frames after one another as one stream.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::workload::transfer::{Format, Level};

/// How a member is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// Raw deflate at a level of zlib's; 0 stores.
    Deflate(u32),
    /// zstd at one of its levels.
    Zstd(i32),
}

impl Codec {
    /// The codec of a zip's or gzip's members (docs/compatibility.md, "Archive formats").
    pub(super) fn of(format: Format, level: Level) -> Self {
        match format {
            Format::ZipZstd | Format::TarZstd => Self::Zstd(match level {
                Level::Fastest | Level::Fast => 1,
                Level::Default => 3,
                Level::Slow => 7,
                Level::Slowest => 12,
            }),
            Format::Zip => Self::Deflate(match level {
                Level::Fastest => 0,
                Level::Fast => 1,
                Level::Default => 5,
                Level::Slow => 7,
                Level::Slowest => 9,
            }),
            Format::Gzip | Format::Raw => Self::Deflate(5),
        }
    }

    /// How much of a large file is one part: large enough that its ratio does not suffer.
    pub(super) fn part(self) -> usize {
        match self {
            Self::Deflate(_) => 1 << 20,
            Self::Zstd(_) => 2 << 20,
        }
    }
}

/// How far back deflate looks: what a part needs of the part before it.
pub(super) const DICTIONARY: usize = 32 << 10;

/// Shorter data is compressed without looking at it first.
const WORTH_A_SAMPLE: usize = 64 << 10;
const SAMPLE: usize = 16 << 10;

/// A thread's compressor; making one costs more than compressing a small file.
pub(super) enum Compressor {
    Deflate { stream: Box<Compress>, sampler: Box<Compress>, level: u32 },
    Zstd { compressor: Box<zstd::bulk::Compressor<'static>>, level: i32 },
}

/// What became of a whole file.
pub(super) enum Whole {
    /// It does not become shorter: as it is.
    Stored,
    Compressed(Vec<u8>),
}

impl Compressor {
    pub(super) fn new(codec: Codec, checksum: bool) -> io::Result<Self> {
        Ok(match codec {
            Codec::Deflate(level) => Self::Deflate {
                stream: Box::new(Compress::new(Compression::new(level), false)),
                sampler: Box::new(Compress::new(Compression::fast(), false)),
                level,
            },
            Codec::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                compressor.include_checksum(checksum)?;
                Self::Zstd { compressor: Box::new(compressor), level }
            }
        })
    }

    pub(super) fn codec(&self) -> Codec {
        match self {
            Self::Deflate { level, .. } => Codec::Deflate(*level),
            Self::Zstd { level, .. } => Codec::Zstd(*level),
        }
    }

    /// Compresses a whole file.
    pub(super) fn whole(&mut self, input: &[u8]) -> io::Result<Whole> {
        let compressed = match self {
            Self::Deflate { level: 0, .. } => return Ok(Whole::Stored),
            Self::Deflate { stream, sampler, .. } => {
                if input.is_empty() || incompressible(sampler, input)? {
                    return Ok(Whole::Stored);
                }
                let mut out = Vec::with_capacity(input.len() + 64);
                stream.reset();
                deflate(stream, input, &mut out, FlushCompress::Finish)?;
                out
            }
            Self::Zstd { .. } if input.is_empty() => return Ok(Whole::Stored),
            Self::Zstd { compressor, .. } => compressor.compress(input)?,
        };
        Ok(if compressed.len() < input.len() {
            Whole::Compressed(compressed)
        } else {
            Whole::Stored
        })
    }

    /// Compresses a part of a file. `before` is the end of the part before it.
    pub(super) fn part(&mut self, before: &[u8], input: &[u8], last: bool) -> io::Result<Vec<u8>> {
        match self {
            Self::Deflate { stream, sampler, level } => {
                let mut out = Vec::with_capacity(input.len() + 64);
                if *level == 0 || incompressible(sampler, input)? {
                    store(input, last, &mut out);
                    return Ok(out);
                }
                stream.reset();
                if !before.is_empty() {
                    stream.set_dictionary(before).map_err(io::Error::other)?;
                }
                let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
                deflate(stream, input, &mut out, flush)?;
                Ok(out)
            }
            Self::Zstd { compressor, .. } => compressor.compress(input),
        }
    }
}

/// Whether a piece out of the middle hardly shrinks: what is compressed already costs the most time
/// and gains nothing.
fn incompressible(sampler: &mut Compress, input: &[u8]) -> io::Result<bool> {
    if input.len() < WORTH_A_SAMPLE {
        return Ok(false);
    }
    let start = input.len() / 2 - SAMPLE / 2;
    let mut out = Vec::with_capacity(SAMPLE + 64);
    sampler.reset();
    deflate(sampler, &input[start..start + SAMPLE], &mut out, FlushCompress::Finish)?;
    Ok(out.len() > SAMPLE - SAMPLE / 50)
}

fn deflate(
    stream: &mut Compress,
    input: &[u8],
    out: &mut Vec<u8>,
    flush: FlushCompress,
) -> io::Result<()> {
    let mut taken = 0;
    loop {
        if out.capacity() - out.len() < 1024 {
            out.reserve(64 << 10);
        }
        let before = stream.total_in();
        let status = stream.compress_vec(&input[taken..], out, flush).map_err(io::Error::other)?;
        taken += usize::try_from(stream.total_in() - before).unwrap_or(usize::MAX);
        // A flush is complete when it leaves room in the output (zlib's manual, `deflate`).
        let flushed = taken == input.len() && out.len() < out.capacity();
        match (status, flush) {
            (Status::StreamEnd, _) => return Ok(()),
            (_, FlushCompress::Sync) if flushed => return Ok(()),
            _ => {}
        }
    }
}

/// Deflate's stored blocks (RFC 1951, 3.2.4). They begin on a byte boundary, as every part does.
pub(super) fn store(input: &[u8], last: bool, out: &mut Vec<u8>) {
    let mut block = |bytes: &[u8], last: bool| {
        let length = u16::try_from(bytes.len()).expect("blocks are cut to 65535 bytes");
        out.push(u8::from(last));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    if input.is_empty() && last {
        block(&[], true);
    }
    let mut blocks = input.chunks(usize::from(u16::MAX)).peekable();
    while let Some(bytes) = blocks.next() {
        block(bytes, last && blocks.peek().is_none());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn inflate(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::read::DeflateDecoder::new(bytes).read_to_end(&mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn parts_after_one_another_are_one_stream(
            seed in any::<u64>(), length in 0_usize..400_000, part in 40_000_usize..200_000,
            level in 0_u32..=9, noisy in any::<bool>(),
        ) {
            let mut state = seed | 1;
            let data: Vec<u8> = (0..length).map(|n| {
                state ^= state << 13; state ^= state >> 7; state ^= state << 17;
                if noisy || n % 100_000 < 50_000 { state.to_le_bytes()[3] } else { b"abcd"[n % 4] }
            }).collect();
            for codec in [Codec::Deflate(level), Codec::Zstd(1)] {
                let mut compressor = Compressor::new(codec, false).unwrap();
                let mut out = Vec::new();
                let mut at = 0;
                loop {
                    let end = (at + part).min(data.len());
                    let before = &data[at.saturating_sub(DICTIONARY)..at];
                    let last = end == data.len();
                    out.extend(compressor.part(before, &data[at..end], last).unwrap());
                    at = end;
                    if last { break }
                }
                let back = match codec {
                    Codec::Deflate(_) => inflate(&out),
                    Codec::Zstd(_) => zstd::decode_all(&out[..]).unwrap(),
                };
                prop_assert!(back == data);
            }
        }
    }

    #[test]
    fn what_is_compressed_already_is_stored() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(200_000)
        .collect();
        let mut compressor = Compressor::new(Codec::Deflate(5), false).unwrap();
        assert!(matches!(compressor.whole(&noise).unwrap(), Whole::Stored));
        assert!(compressor.part(&[], &noise, true).unwrap().len() <= noise.len() + 5 * 4);
    }
}
