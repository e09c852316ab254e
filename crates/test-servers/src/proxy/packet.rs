//! Packets, and where an answer ends.
//!
//! Sources: MySQL's "Client/Server Protocol" (dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html). Only what a
//! plain client without TLS, compression and `LOCAL INFILE` sends is understood.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A frame is a length of three bytes, a sequence number, and so many bytes.
const HEADER: usize = 4;
/// A frame of this length is continued by the next one.
const LONGEST: usize = 0xff_ffff;

const CLIENT_COMPRESS: u32 = 1 << 5;
const CLIENT_SSL: u32 = 1 << 11;
const CLIENT_DEPRECATE_EOF: u32 = 1 << 24;

const MORE_RESULTS: u16 = 0x0008;

/// One packet as it came, frame headers included.
#[derive(Debug)]
pub(super) struct Packet(Vec<u8>);

impl Packet {
    /// The bytes of its first frame: all of it, unless it is longer than 16 MiB.
    pub(super) fn payload(&self) -> &[u8] {
        self.0.get(HEADER..).unwrap_or_default()
    }

    pub(super) fn raw(&self) -> &[u8] {
        &self.0
    }

    fn first(&self) -> Option<u8> {
        self.payload().first().copied()
    }

    pub(super) fn is_ok(&self) -> bool {
        self.first() == Some(0x00)
    }

    pub(super) fn is_error(&self) -> bool {
        self.first() == Some(0xff)
    }

    /// An error as a server would send it. `sequence` is that of the packet it answers, and one more; a greeting has 0,
    /// and as nothing is agreed upon yet, no SQL state.
    pub(super) fn error(sequence: u8, code: u16, sqlstate: &str, message: &str) -> Self {
        let mut payload = vec![0xff];
        payload.extend(code.to_le_bytes());
        if sequence > 0 {
            payload.push(b'#');
            payload.extend(sqlstate.bytes());
        }
        payload.extend(message.bytes());
        let length = u32::try_from(payload.len()).expect("a short message").to_le_bytes();
        let mut raw = vec![length[0], length[1], length[2], sequence];
        raw.append(&mut payload);
        Self(raw)
    }
}

/// One direction's reader. Each method may be dropped half way and called again: nothing that was read is lost.
pub(super) struct Reader {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    ended: bool,
}

impl Reader {
    pub(super) fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, buffer: Vec::new(), ended: false }
    }

    /// The next packet; `None` = the other side has closed, or was reset.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(length) = whole(&self.buffer) {
                let rest = self.buffer.split_off(length);
                return Some(Packet(std::mem::replace(&mut self.buffer, rest)));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Returns when the other side has closed. What it sends until then is kept.
    pub(super) async fn closed(&mut self) {
        while self.fill().await {}
    }

    async fn fill(&mut self) -> bool {
        if !self.ended {
            self.ended = !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..));
        }
        !self.ended
    }
}

/// How long the packet at the start of `bytes` is, if all of it is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    loop {
        let [a, b, c, _] = *bytes.get(end..end + HEADER)? else { return None };
        let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        end += HEADER + length;
        if length < LONGEST {
            return (bytes.len() >= end).then_some(end);
        }
    }
}

pub(super) async fn send(stream: &mut OwnedWriteHalf, packet: &Packet) -> io::Result<()> {
    stream.write_all(packet.raw()).await
}

/// What both sides agreed upon, from the client's answer to the greeting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    deprecate_eof: bool,
}

impl Agreed {
    /// # Panics
    /// When the client asks for what this proxy cannot look into.
    pub(super) fn read(answer: &Packet) -> Self {
        let flags =
            answer.payload().get(..4).map_or([0; 4], |bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
        let flags = u32::from_le_bytes(flags);
        assert_eq!(flags & CLIENT_SSL, 0, "the proxy reads plain packets: connect with ssl-mode=disabled");
        assert_eq!(flags & CLIENT_COMPRESS, 0, "the proxy reads plain packets: connect without compression");
        Self { deprecate_eof: flags & CLIENT_DEPRECATE_EOF != 0 }
    }
}

/// Follows an answer to its end.
#[derive(Debug)]
pub(super) struct Answer {
    agreed: Agreed,
    state: State,
}

#[derive(Debug)]
enum State {
    /// One packet is all.
    Single,
    /// An OK, an error, or how many columns follow.
    Result,
    /// So many packets that are looked into no further.
    Definitions {
        left: u64,
        then_rows: bool,
    },
    Rows,
    Prepared,
    Ended,
}

impl Answer {
    pub(super) fn single(agreed: Agreed) -> Self {
        Self { agreed, state: State::Single }
    }

    pub(super) fn results(agreed: Agreed) -> Self {
        Self { agreed, state: State::Result }
    }

    pub(super) fn prepared(agreed: Agreed) -> Self {
        Self { agreed, state: State::Prepared }
    }

    /// Takes the answer's next packet; says whether it was the last.
    pub(super) fn is_last(&mut self, packet: &Packet) -> bool {
        let payload = packet.payload();
        // Rows are the only packets of which the first byte may be anything.
        let failed = packet.is_error() && !matches!(self.state, State::Definitions { .. });
        self.state = match &self.state {
            _ if failed => State::Ended,
            State::Single | State::Ended | State::Definitions { left: 1, then_rows: false } => State::Ended,
            State::Result if packet.is_ok() => Self::after(ok_status(payload)),
            State::Result => {
                let columns = lenenc(payload).map_or(0, |(columns, _)| columns);
                let left = columns + u64::from(!self.agreed.deprecate_eof);
                State::Definitions { left, then_rows: true }
            }
            State::Definitions { left: 1, then_rows: true } => State::Rows,
            State::Definitions { left, then_rows } => {
                State::Definitions { left: left.saturating_sub(1), then_rows: *then_rows }
            }
            State::Rows if self.ends_rows(payload) => {
                let status = if self.agreed.deprecate_eof { ok_status(payload) } else { u16_at(payload, 3) };
                Self::after(status)
            }
            State::Rows => State::Rows,
            State::Prepared => {
                let eof = u64::from(!self.agreed.deprecate_eof);
                let part = |at| match u64::from(u16_at(payload, at)) {
                    0 => 0,
                    count => count + eof,
                };
                match part(5) + part(7) {
                    0 => State::Ended,
                    left => State::Definitions { left, then_rows: false },
                }
            }
        };
        matches!(self.state, State::Ended)
    }

    fn ends_rows(&self, payload: &[u8]) -> bool {
        payload.first() == Some(&0xfe) && (self.agreed.deprecate_eof || payload.len() < 9)
    }

    fn after(status: u16) -> State {
        if status & MORE_RESULTS == 0 { State::Ended } else { State::Result }
    }
}

/// The statement's number in the answer to a prepare that went well.
pub(super) fn prepared_id(packet: &Packet) -> Option<u32> {
    let bytes = packet.payload().get(1..5)?;
    packet.is_ok().then(|| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The status flags of an OK packet, whichever its first byte.
fn ok_status(payload: &[u8]) -> u16 {
    let rest = payload.get(1..).unwrap_or_default();
    let Some((_, affected)) = lenenc(rest) else { return 0 };
    let rest = rest.get(affected..).unwrap_or_default();
    let Some((_, inserted)) = lenenc(rest) else { return 0 };
    u16_at(rest, inserted)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// A length-encoded number, and how many bytes it takes.
fn lenenc(bytes: &[u8]) -> Option<(u64, usize)> {
    let width = match *bytes.first()? {
        0xfc => 2,
        0xfd => 3,
        0xfe => 8,
        small => return Some((u64::from(small), 1)),
    };
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(bytes.get(1..=width)?);
    Some((u64::from_le_bytes(wide), width + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: &[u8]) -> Packet {
        let mut raw = vec![u8::try_from(payload.len()).expect("short"), 0, 0, 1];
        raw.extend(payload);
        Packet(raw)
    }

    fn last(answer: &mut Answer, payloads: &[&[u8]]) -> Vec<bool> {
        payloads.iter().map(|payload| answer.is_last(&packet(payload))).collect()
    }

    const OK: &[u8] = &[0, 1, 0xfc, 0, 1, 2, 0, 0, 0];
    const OK_AND_MORE: &[u8] = &[0, 1, 0xfc, 0, 1, 0x0a, 0, 0, 0];

    #[test]
    fn answers_end_where_they_end() {
        let new = Agreed { deprecate_eof: true };
        let old = Agreed { deprecate_eof: false };
        assert_eq!(last(&mut Answer::results(new), &[OK]), [true]);
        assert_eq!(last(&mut Answer::results(new), &[OK_AND_MORE, OK]), [false, true]);
        assert_eq!(last(&mut Answer::results(new), &[OK_AND_MORE, b"\xff\x01\x02"]), [false, true]);
        // One column; a row that begins like an OK; the end.
        let rows: [&[u8]; 4] = [&[1], b"def", &[0, 0, 1], &[0xfe, 0, 0, 2, 0, 0, 0]];
        assert_eq!(last(&mut Answer::results(new), &rows), [false, false, false, true]);
        let more: [&[u8]; 4] = [&[1], b"def", &[0xfe, 0, 0, 0x0a, 0, 0, 0], OK];
        assert_eq!(last(&mut Answer::results(new), &more), [false, false, false, true]);
        let rows: [&[u8]; 5] = [&[1], b"def", &[0xfe, 0, 0, 2, 0], &[0, 0, 1], &[0xfe, 0, 0, 2, 0]];
        assert_eq!(last(&mut Answer::results(old), &rows), [false, false, false, false, true]);
        // Two parameters and one column.
        let head: &[u8] = &[0, 7, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0];
        let mut prepared = Answer::prepared(new);
        assert_eq!(last(&mut prepared, &[head, b"def", b"def", b"def"]), [false, false, false, true]);
        let mut prepared = Answer::prepared(old);
        let eof: &[u8] = &[0xfe, 0, 0, 2, 0];
        let answer = last(&mut prepared, &[head, b"def", b"def", eof, b"def", eof]);
        assert_eq!(answer, [false, false, false, false, false, true]);
        assert_eq!(last(&mut Answer::prepared(new), &[&[0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]), [true]);
        assert_eq!(prepared_id(&packet(head)), Some(7));
    }

    #[test]
    fn a_packet_is_whole_with_its_last_frame() {
        assert_eq!(whole(&[3, 0, 0, 0, 1, 2]), None);
        assert_eq!(whole(&[3, 0, 0, 0, 1, 2, 3, 9]), Some(7));
        let mut long = vec![0xff, 0xff, 0xff, 0];
        long.resize(HEADER + LONGEST, 7);
        assert_eq!(whole(&long), None);
        long.extend([1, 0, 0, 1, 7]);
        assert_eq!(whole(&long), Some(long.len()));
    }
}
