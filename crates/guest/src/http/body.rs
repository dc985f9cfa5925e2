//! The body of a request, taken off a blocking connection straight into the reader's own buffer, so that a byte is
//! copied once on its way out of the kernel. Only framing goes through a buffer in between.

use std::io::{self, BufRead as _, BufReader, Read, Take};

/// Bytes received ahead while framing is looked at.
const AHEAD: usize = 1024;
/// Bytes dropped at once.
const DISCARDED: usize = 16 * 1024;
/// Longest line of chunk framing, bytes.
const MAX_LINE: u64 = 1024;
/// Most lines after the last chunk.
const MAX_TRAILERS: usize = 64;

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length, bytes.
    Length(u64),
    /// By chunks that each have a length.
    Chunked,
}

impl Framing {
    /// Bytes of the body, where they are known.
    pub(super) fn length(self) -> Option<usize> {
        match self {
            Self::Length(length) => Some(usize::try_from(length).unwrap_or(usize::MAX)),
            Self::Chunked => None,
        }
    }
}

/// A body being read.
#[derive(Debug)]
pub(super) struct Body<R> {
    reader: BufReader<Take<R>>,
    /// Bytes to come of the whole body, or of the chunk.
    left: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing follows what is left.
    Last,
    /// The size of the first chunk follows.
    FirstChunk,
    /// The end of the line of what is left follows, then the size of another chunk.
    NextChunk,
}

impl<R: Read> Body<R> {
    /// A body that begins with the next byte of `connection`.
    pub(super) fn new(connection: R, framing: Framing) -> Self {
        let (limit, left, state) = match framing {
            Framing::Length(length) => (length, length, State::Last),
            Framing::Chunked => (u64::MAX, 0, State::FirstChunk),
        };
        Self { reader: BufReader::with_capacity(AHEAD, connection.take(limit)), left, state }
    }

    /// Fills `buffer` from its beginning, and less of it only at the end of the body. Returns how many bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && self.state != State::Last {
            self.next_chunk()?;
        }
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.reader.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Reads the rest and drops it.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; DISCARDED];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    /// Whether nothing was received that belongs to another request.
    pub(super) fn is_exhausted(&self) -> bool {
        self.reader.buffer().is_empty()
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        if self.state == State::NextChunk && !self.line()?.is_empty() {
            return Err(malformed("a chunk is longer than its size"));
        }
        self.state = State::NextChunk;
        self.left = chunk_size(&self.line()?).ok_or_else(|| malformed("a chunk has no proper size"))?;
        if self.left > 0 {
            return Ok(());
        }
        self.state = State::Last;
        for _ in 0..MAX_TRAILERS {
            if self.line()?.is_empty() {
                return Ok(());
            }
        }
        Err(malformed("too many trailers"))
    }

    /// The next line without its end.
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(line.to_owned()),
            None if (line.len() as u64) < MAX_LINE && !line.ends_with(b"\n") => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            None => Err(malformed("a line of the chunk framing does not end")),
        }
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Hexadecimal digits, then perhaps an extension, which means nothing here.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii_end();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(wire: &[u8], framing: Framing) -> io::Result<(Vec<u8>, bool)> {
        let mut body = Body::new(wire, framing);
        let mut data = Vec::new();
        let mut buffer = [0; 7];
        loop {
            let filled = body.fill(&mut buffer)?;
            data.extend_from_slice(&buffer[..filled]);
            if filled < buffer.len() {
                return Ok((data, body.is_exhausted()));
            }
        }
    }

    #[test]
    fn a_body_of_known_length_takes_no_byte_of_the_next_request() {
        assert_eq!(read_all(b"abcGET", Framing::Length(3)).unwrap(), (b"abc".to_vec(), true));
        assert_eq!(read_all(b"", Framing::Length(0)).unwrap(), (Vec::new(), true));
        assert!(read_all(b"ab", Framing::Length(3)).is_err());
    }

    #[test]
    fn chunks_come_with_extensions_and_trailers() {
        let wire = b"3;x=y\r\nabc\r\n0A \r\n0123456789\r\n0\r\nx: y\r\n\r\n";
        assert_eq!(read_all(wire, Framing::Chunked).unwrap(), (b"abc0123456789".to_vec(), true));
        let pipelined = read_all(b"0\r\n\r\nGET", Framing::Chunked).unwrap();
        assert_eq!(pipelined, (Vec::new(), false));
    }

    #[test]
    fn malformed_framing_is_an_error() {
        for wire in
            ["", "\r\n", "+3\r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3\r\nab", "0\r\n", "3\nabc"]
        {
            assert!(read_all(wire.as_bytes(), Framing::Chunked).is_err(), "{wire:?}");
        }
        let long = "1".repeat(5000);
        assert!(read_all(long.as_bytes(), Framing::Chunked).is_err());
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20)) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(read_all(&wire, Framing::Chunked).unwrap(), (chunks.concat(), true));
        }

        #[test]
        fn no_input_makes_it_panic(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_all(&wire, Framing::Chunked);
        }
    }
}
