//! As much of a DNS message as forwarding needs (RFC 1035): the header and the question.

const HEADER_LEN: usize = 12;

/// In the third byte: this is a response.
const QR: u8 = 0x80;
/// In the third byte: the kind of query, and that recursion is wished for.
const OPCODE_AND_RD: u8 = 0x79;
/// In the fourth byte: recursion is available.
const RA: u8 = 0x80;
/// In the fourth byte: the outcome.
const RCODE: u8 = 0x0f;

const SERVFAIL: u8 = 2;
const NOTIMP: u8 = 4;
const REFUSED: u8 = 5;

/// A query with exactly one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    bytes: Vec<u8>,
    question_end: usize,
}

impl Query {
    /// Takes a message for a query; `None` where it is none, or its question is damaged.
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let one_question = header[4..6] == [0, 1];
        if header[2] & QR != 0 || !one_question {
            return None;
        }
        let question_end = question_end(&bytes)?;
        Some(Self { bytes, question_end })
    }

    /// The message as the guest wrote it.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `reply` is a response to this query and no other: the number and the question agree. A server
    /// that could not read the question may leave it out.
    pub(super) fn is_answered_by(&self, reply: &[u8]) -> bool {
        let Some(header) = reply.first_chunk::<HEADER_LEN>() else { return false };
        if header[..2] != self.bytes[..2] || header[2] & QR == 0 {
            return false;
        }
        let question = &self.bytes[HEADER_LEN..self.question_end];
        match header[4..6] {
            [0, 0] => true,
            [0, 1] => reply
                .get(HEADER_LEN..self.question_end)
                .is_some_and(|echoed| echoed.eq_ignore_ascii_case(question)),
            _ => false,
        }
    }

    /// The answer that no server could be asked.
    pub(super) fn servfail(&self) -> Vec<u8> {
        let mut reply = self.bytes[..self.question_end].to_vec();
        reply[2] = QR | (self.bytes[2] & OPCODE_AND_RD);
        reply[3] = RA | SERVFAIL;
        // No records of any kind follow the question.
        reply[6..HEADER_LEN].fill(0);
        reply
    }
}

/// Whether a reply says that this server is the wrong one to ask, so that another may do better.
pub(super) fn declines(reply: &[u8]) -> bool {
    reply.get(3).is_some_and(|byte| matches!(byte & RCODE, SERVFAIL | NOTIMP | REFUSED))
}

/// Where the question ends: a name of labels that ends with an empty one, then a type and a class.
fn question_end(bytes: &[u8]) -> Option<usize> {
    const NAME_MAX: usize = 255;
    const LABEL_MAX: u8 = 63;
    let mut at = HEADER_LEN;
    loop {
        let length = *bytes.get(at)?;
        at += 1;
        if length == 0 {
            break;
        }
        if length > LABEL_MAX {
            return None;
        }
        at += usize::from(length);
        if at - HEADER_LEN >= NAME_MAX {
            return None;
        }
    }
    let end = at + 4;
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(id: u16) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0x01, 0x20, 0, 1, 0, 0, 0, 0, 0, 1]);
        bytes.extend_from_slice(b"\x04wren\x07example\0\0\x01\0\x01");
        // An OPT record.
        bytes.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn reply(id: u16) -> Vec<u8> {
        let mut bytes = query(id);
        bytes[2] |= QR;
        bytes
    }

    #[test]
    fn a_reply_must_carry_the_number_and_the_question() {
        let query = Query::parse(query(7)).unwrap();
        assert!(query.is_answered_by(&reply(7)));
        assert!(!query.is_answered_by(&reply(8)));
        assert!(!query.is_answered_by(query.as_bytes()));
        let mut other = reply(7);
        other[14] = b'x';
        assert!(!query.is_answered_by(&other));
        let mut mixed_case = reply(7);
        mixed_case[13] = b'W';
        assert!(query.is_answered_by(&mixed_case));
    }

    #[test]
    fn a_response_is_no_query() {
        assert_eq!(Query::parse(reply(7)), None);
    }

    #[test]
    fn servfail_answers_the_query_it_was_made_from_and_ends_with_the_question() {
        let query = Query::parse(query(0xabcd)).unwrap();
        let answer = query.servfail();
        assert!(query.is_answered_by(&answer));
        assert!(declines(&answer));
        assert_eq!(answer[2..12], [0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer.len(), query.question_end);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            reply in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut bytes = bytes;
            if bytes.len() > 6 {
                bytes[4..6].copy_from_slice(&[0, 1]);
            }
            if let Some(query) = Query::parse(bytes) {
                query.is_answered_by(&reply);
                prop_assert!(query.is_answered_by(&query.servfail()));
            }
        }
    }
}
