//! Text out of a byte stream whose pieces end anywhere, also within a character.

/// Decodes one stream: keeps an incomplete trailing sequence for the next piece, and replaces what is no UTF-8.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    carry: Vec<u8>,
}

impl Decoder {
    /// The text that `piece` completes.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        self.carry.extend_from_slice(piece);
        let keep = incomplete_tail(&self.carry);
        let whole = self.carry.len() - keep;
        let text = String::from_utf8_lossy(&self.carry[..whole]).into_owned();
        self.carry.drain(..whole);
        text
    }

    /// What is left when the stream ends.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.carry)).into_owned()
    }
}

/// Length of a trailing sequence that more bytes could still make a character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let start = bytes.len() - back;
        if bytes[start] & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        return match std::str::from_utf8(&bytes[start..]) {
            Err(error) if error.error_len().is_none() => back,
            _ => 0,
        };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_cut_in_two_arrives_whole() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xe2\x82"), "a");
        assert_eq!(decoder.push(b"\xac!"), "\u{20ac}!");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn an_unfinished_character_becomes_a_replacement_at_the_end() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(b"a\xf0\x9f"), "a");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    proptest! {
        #[test]
        fn text_survives_any_cutting(text in "\\PC{0,64}", cuts in proptest::collection::vec(0usize..256, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::default();
            let mut out = String::new();
            for pair in cuts.windows(2) {
                out += &decoder.push(&bytes[pair[0]..pair[1]]);
            }
            out += &decoder.finish();
            prop_assert_eq!(out, text);
        }

        #[test]
        fn at_most_three_bytes_are_ever_held_back(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                prop_assert!(decoder.carry.len() <= 3);
            }
        }
    }
}
