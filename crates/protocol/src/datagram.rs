//! Calls of the host to the guest daemon by UDP, at the same port number as its HTTP: what `POST /init` and
//! `POST /prepare` do, for a machine that was just restored.
//!
//! An emulator has translated nothing of such a machine, and every instruction on the way of its first call is translated
//! while somebody waits. A datagram each way is a small part of what a TCP connection and an HTTP server take.
//!
//! All numbers are little-endian:
//!
//! | call | bytes | | answer | bytes |
//! |---|---|---|---|---|
//! | `WRN1` | 4 | | `WRN1` | 4 |
//! | number of the call | 8 | | number of the call | 8 |
//! | [`Operation`] | 1 | | HTTP status | 2 |
//! | length of the access token | 2 | | body | the rest |
//! | access token | as said | | | |
//! | body | the rest | | | |
//!
//! Bodies are those of the HTTP calls. A call is sent again, under its number, until it is answered; the daemon answers a
//! number that it has answered last with the same words and does nothing.

/// First bytes of either.
const MAGIC: &[u8; 4] = b"WRN1";

/// Longest call or answer in bytes; what is longer goes by HTTP.
pub const MAX_BYTES: usize = 60_000;

/// What is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `POST /init`. The name in it is in the kernel when this is answered, and in the files of `/etc` before any
    /// connection that is made later is served.
    Init,
    /// `POST /prepare`.
    Prepare,
}

impl Operation {
    const ALL: [(u8, Self); 2] = [(1, Self::Init), (2, Self::Prepare)];
}

/// A call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// Not used before, and not to be guessed.
    pub number: u64,
    /// What is called for.
    pub operation: Operation,
    /// The daemon's access token; may be empty where it demands none.
    pub token: &'a [u8],
    /// Body of the HTTP call.
    pub body: &'a [u8],
}

impl<'a> Call<'a> {
    /// The datagram; `None` where it would be longer than [`MAX_BYTES`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let (code, _) = Operation::ALL.into_iter().find(|(_, operation)| *operation == self.operation)?;
        let token_bytes = u16::try_from(self.token.len()).ok()?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.number.to_le_bytes());
        bytes.push(code);
        bytes.extend(token_bytes.to_le_bytes());
        bytes.extend(self.token);
        bytes.extend(self.body);
        (bytes.len() <= MAX_BYTES).then_some(bytes)
    }

    /// What the datagram calls for; `None` where it is none of these.
    pub fn decode(datagram: &'a [u8]) -> Option<Self> {
        let (number, rest) = head(datagram)?;
        let (&code, rest) = rest.split_first()?;
        let (_, operation) = Operation::ALL.into_iter().find(|(known, _)| *known == code)?;
        let (token_bytes, rest) = rest.split_first_chunk()?;
        let (token, body) = rest.split_at_checked(usize::from(u16::from_le_bytes(*token_bytes)))?;
        Some(Self { number, operation, token, body })
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The number of the call.
    pub number: u64,
    /// The status that HTTP would have.
    pub status: u16,
    /// The body that HTTP would have.
    pub body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.status.to_le_bytes());
        bytes.extend(self.body);
        bytes
    }

    /// What the datagram answers; `None` where it is no answer.
    pub fn decode(datagram: &'a [u8]) -> Option<Self> {
        let (number, rest) = head(datagram)?;
        let (status, body) = rest.split_first_chunk()?;
        Some(Self { number, status: u16::from_le_bytes(*status), body })
    }
}

fn head(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = datagram.strip_prefix(MAGIC)?.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn calls_and_answers_arrive_as_they_were_sent(
            number: u64,
            status: u16,
            prepare: bool,
            token in prop::collection::vec(any::<u8>(), 0..100),
            body in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let operation = if prepare { Operation::Prepare } else { Operation::Init };
            let call = Call { number, operation, token: &token, body: &body };
            let datagram = call.encode().expect("short");
            prop_assert_eq!(Call::decode(&datagram), Some(call));
            let answer = Answer { number, status, body: &body };
            let datagram = answer.encode();
            prop_assert_eq!(Answer::decode(&datagram), Some(answer));
        }

        #[test]
        fn whatever_arrives_is_read_or_refused(datagram in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(call) = Call::decode(&datagram) {
                prop_assert_eq!(call.encode(), Some(datagram.clone()));
            }
            if let Some(answer) = Answer::decode(&datagram) {
                prop_assert_eq!(answer.encode(), datagram);
            }
        }
    }

    #[test]
    fn a_cut_off_call_is_none_and_a_long_one_is_not_made() {
        let token = [7; 40];
        let whole = Call { number: 9, operation: Operation::Init, token: &token, body: b"" };
        let whole = whole.encode().expect("short");
        assert!((0..whole.len()).all(|length| Call::decode(&whole[..length]).is_none()));
        let body = vec![0; MAX_BYTES];
        assert!(Call { number: 9, operation: Operation::Init, token: b"", body: &body }.encode().is_none());
    }
}
