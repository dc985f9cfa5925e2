//! Netlink messages and attributes as bytes.

/// Set on the type of an attribute that holds attributes.
const NLA_F_NESTED: u16 = 0x8000;

/// Netlink messages in one buffer, each attribute padded to four bytes.
#[derive(Debug, Default)]
pub(super) struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// One message: the netlink header, nfnetlink's own, then the attributes that `body` writes.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.buffer.len() - start).unwrap_or(u32::MAX);
        self.buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute of raw bytes.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.buffer.extend_from_slice(value));
    }

    /// An attribute that is a number, in network order as nf_tables wants all its own numbers.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that is a text, with the zero that ends it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.buffer.extend_from_slice(value.as_bytes());
            writer.buffer.push(0);
        });
    }

    /// An attribute that holds the attributes `body` writes.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    /// An attribute that holds attributes written beforehand.
    pub(super) fn nested_bytes(&mut self, kind: u16, content: &[u8]) {
        self.bytes(kind | NLA_F_NESTED, content);
    }

    /// What was written.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.buffer
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        // The rule sets are constants of this crate, a few kilobytes in all, so 16 bits hold every length.
        let length = u16::try_from(self.buffer.len() - start).unwrap_or(u16::MAX);
        self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_zero_terminated_and_padded_and_the_padding_is_not_counted() {
        let mut writer = Writer::default();
        writer.text(1, "wrenn");
        let mut expected = vec![];
        expected.extend_from_slice(&10u16.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(b"wrenn\0\0\0");
        assert_eq!(writer.as_bytes(), expected);
    }

    #[test]
    fn numbers_are_in_network_order_and_a_nest_is_marked_and_counts_its_content() {
        let mut writer = Writer::default();
        writer.nested(4, |writer| writer.number(2, 0xfffe));
        let mut expected = vec![];
        expected.extend_from_slice(&12u16.to_ne_bytes());
        expected.extend_from_slice(&0x8004u16.to_ne_bytes());
        expected.extend_from_slice(&8u16.to_ne_bytes());
        expected.extend_from_slice(&2u16.to_ne_bytes());
        expected.extend_from_slice(&[0, 0, 0xff, 0xfe]);
        assert_eq!(writer.as_bytes(), expected);
    }

    #[test]
    fn a_message_counts_both_headers_and_its_attributes() {
        let mut writer = Writer::default();
        writer.message(0x0a06, 5, 9, 2, 10, |writer| writer.number(1, 7));
        let mut expected = vec![];
        expected.extend_from_slice(&28u32.to_ne_bytes());
        expected.extend_from_slice(&0x0a06u16.to_ne_bytes());
        expected.extend_from_slice(&5u16.to_ne_bytes());
        expected.extend_from_slice(&9u32.to_ne_bytes());
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&[2, 0, 0, 10]);
        expected.extend_from_slice(&8u16.to_ne_bytes());
        expected.extend_from_slice(&1u16.to_ne_bytes());
        expected.extend_from_slice(&[0, 0, 0, 7]);
        assert_eq!(writer.as_bytes(), expected);
    }

    proptest! {
        #[test]
        fn attributes_of_any_length_follow_each_other_on_four_byte_borders(
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)
        ) {
            let mut writer = Writer::default();
            for value in &values {
                writer.bytes(3, value);
            }
            let mut rest = writer.as_bytes();
            for value in &values {
                let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
                prop_assert_eq!(&rest[4..length], &value[..]);
                rest = &rest[length.next_multiple_of(4)..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
