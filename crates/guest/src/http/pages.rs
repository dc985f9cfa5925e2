//! Memory that a disk can read from directly.

/// What `O_DIRECT` demands of addresses, offsets and lengths on every disk in use: a page.
const PAGE: usize = 4096;

/// Whole, aligned pages.
#[derive(Debug)]
pub(super) struct Pages {
    pages: Box<[Page]>,
}

#[derive(Debug)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

impl Pages {
    /// Zeroed pages for that many bytes, rounded up.
    pub(super) fn new(bytes: usize) -> Self {
        // SAFETY: bytes of zero are a page. Memory that is zero by itself is not touched before it is used.
        Self { pages: unsafe { Box::new_zeroed_slice(bytes.div_ceil(PAGE)).assume_init() } }
    }

    /// All of them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let length = self.pages.len() * PAGE;
        // SAFETY: pages are arrays of bytes without padding, one after the other, borrowed as long as the result.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_and_aligned() {
        for (asked, got) in [(0, 0), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)] {
            let mut pages = Pages::new(asked);
            assert_eq!(pages.bytes().len(), got);
            assert_eq!(pages.bytes().as_ptr().addr() % PAGE, 0);
        }
    }
}
