//! Splits what a connection carried into HTTP/2 frames (RFC 9113, section 4.1).

/// What a client sends first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
/// Types of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
/// Flag of the last frame of a request or an answer.
pub(crate) const END_STREAM: u8 = 1;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
    /// Number of the [`Splitter::push`] that brought its first byte.
    pub(crate) begun: usize,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: Vec<u8>,
    pushes: usize,
    /// The push that brought the first byte of the buffer.
    begun: usize,
}

impl Splitter {
    /// Takes the next bytes; returns the frames that are complete by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Frame> {
        if self.buffer.is_empty() {
            self.begun = self.pushes;
        }
        self.pushes += 1;
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        if self.buffer.starts_with(PREFACE) {
            at = PREFACE.len();
            self.begun = self.pushes - 1;
        } else if PREFACE.starts_with(&self.buffer) {
            return Vec::new();
        }
        let mut frames = Vec::new();
        while let Some(header) = self.buffer.get(at..at + HEADER_BYTES) {
            let number = |bytes: &[u8]| bytes.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
            let length = number(&header[..3]) as usize;
            let Some(payload) = self.buffer.get(at + HEADER_BYTES..at + HEADER_BYTES + length) else { break };
            let stream = number(&header[5..9]) & 0x7fff_ffff;
            let (payload, begun) = (payload.to_vec(), self.begun);
            frames.push(Frame { kind: header[3], flags: header[4], stream, payload, begun });
            at += HEADER_BYTES + length;
            // Only the first frame can have begun earlier.
            self.begun = self.pushes - 1;
        }
        self.buffer.drain(..at);
        frames
    }
}

#[cfg(test)]
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [PREFACE.to_vec(), frame(4, 0, 0, b""), frame(DATA, END_STREAM, 3, b"hello")].concat();
        for size in 1..bytes.len() {
            let mut splitter = Splitter::default();
            let frames: Vec<_> = bytes.chunks(size).flat_map(|chunk| splitter.push(chunk)).collect();
            assert_eq!(frames.len(), 2, "in pieces of {size}");
            assert_eq!((frames[1].stream, frames[1].payload.as_slice()), (3, b"hello".as_slice()));
            assert_eq!(frames[1].begun, (bytes.len() - HEADER_BYTES - 5) / size, "in pieces of {size}");
        }
    }
}
