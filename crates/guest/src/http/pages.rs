//! Memory that a disk can be written from directly.

/// Bytes of a huge page on x86-64.
pub(super) const HUGE_PAGE: usize = 2 * 1024 * 1024;

/// One buffer of [`HUGE_PAGE`] bytes, aligned to that. In one piece of physical memory, if the kernel has one: a disk
/// then takes it as one segment instead of hundreds.
#[derive(Debug)]
pub(super) struct Pages(Box<Huge>);

#[derive(Debug)]
#[repr(C, align(0x20_0000))]
struct Huge([u8; HUGE_PAGE]);

impl Pages {
    /// A zeroed buffer.
    pub(super) fn new() -> Self {
        // SAFETY: bytes of zero are a `Huge`. Memory that is zero by itself is not touched before it is used.
        let mut huge: Box<Huge> = unsafe { Box::new_zeroed().assume_init() };
        // Advice that is not taken leaves ordinary pages, which do as well.
        // SAFETY: the range is this allocation's, and the advice changes no content.
        unsafe { libc::madvise(huge.0.as_mut_ptr().cast(), HUGE_PAGE, libc::MADV_HUGEPAGE) };
        Self(huge)
    }

    /// All of it.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_whole() {
        let mut pages = [Pages::new(), Pages::new(), Pages::new()];
        for one in &mut pages {
            assert_eq!(one.bytes().as_ptr().addr() % HUGE_PAGE, 0);
            assert_eq!(one.bytes().len(), HUGE_PAGE);
            assert!(one.bytes().iter().all(|byte| *byte == 0));
            one.bytes().fill(1);
        }
    }
}
