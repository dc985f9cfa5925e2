//! How a pager ends: with its VMM, or because it cannot go on.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{PidfdFlags, Signal};
use wrenn_vmm::ExitReason;

use crate::bench::{Bench, Running};
use crate::vmm::{Do, Vmm, mapping, send};

const FINE: ExitReason = ExitReason::Exited { code: 0 };

/// Waits for a pager that must fail, and returns what it said.
async fn failed(bench: &Bench, pager: &Running) -> String {
    let end = pager.end().await;
    assert!(matches!(end, ExitReason::Exited { code } if code != 0), "{end}: {}", bench.said());
    bench.said()
}

#[tokio::test]
async fn a_pager_ends_with_a_vmm_that_is_killed_while_its_threads_wait_for_pages() {
    let bench = Bench::new(2000);
    let (mut vmm, pager) = bench.serve(&[2000], &[]).await;
    vmm.run(Do::Read(0, 1));
    pager.signal(Signal::STOP);
    vmm.begin(Do::Walk(4));
    vmm.await_faults(4);
    vmm.kill();
    pager.signal(Signal::CONT);
    assert_eq!(pager.end().await, FINE, "{}", bench.said());
}

#[tokio::test]
async fn a_pager_ends_with_a_vmm_that_is_killed_at_any_moment() {
    let bench = Bench::new(2000);
    let all: Range<u64> = 0..2000;
    for prefetch in [&[][..], &[all]] {
        for _ in 0..5 {
            let (mut vmm, pager) = bench.serve(&[2000], prefetch).await;
            vmm.begin(Do::Walk(4));
            vmm.kill();
            assert_eq!(pager.end().await, FINE, "{}", bench.said());
        }
    }
}

#[tokio::test]
async fn a_pager_ends_with_a_vmm_that_never_connected_or_never_spoke() {
    let bench = Bench::new(10);
    for connects in [false, true] {
        let mut vmm = Vmm::start(&bench.path("socket"), &[10]);
        let pager = bench.pager(&vmm.pidfd(), &[]).await;
        let stream = connects.then(|| UnixStream::connect(bench.path("socket")).unwrap());
        vmm.kill();
        assert_eq!(pager.end().await, FINE, "{}", bench.said());
        drop(stream);
    }
}

/// Hands over something that is none of Firecracker's handshakes, and returns what the pager said.
async fn hand_over(bench: &Bench, text: &str, descriptors: &[&OwnedFd]) -> String {
    let vmm = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let pager = bench.pager(&vmm, &[]).await;
    let stream = UnixStream::connect(bench.path("socket")).unwrap();
    send(&stream, text, descriptors);
    failed(bench, &pager).await
}

#[tokio::test]
async fn a_wrong_handshake_is_refused_with_its_reason() {
    let bench = Bench::new(10);
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let address = 0x7000_0000_0000;
    let one = |size, offset, page| serde_json::to_string(&[mapping(address, size, offset, page)]).unwrap();
    let right = one(40_960, 0, 4096);
    for (text, descriptors, reason) in [
        ("Hello!", &[&null][..], "cannot be read"),
        ("{}", &[&null], "cannot be read"),
        ("[]", &[&null], "0 bytes of memory"),
        (&one(36_864, 0, 4096), &[&null], "36864 bytes of memory"),
        (&one(40_960, 4096, 4096), &[&null], "begins at 4096"),
        (&one(40_961, 0, 4096), &[&null], "not whole pages"),
        (&one(40_960, 0, 2 << 20), &[&null], "without huge pages"),
        (&right, &[], "no descriptor"),
        (&right, &[&null], "no userfaultfd"),
        (&right, &[&null, &null], "more than one descriptor"),
        (&right, &[&null, &null, &null], "more than one descriptor"),
    ] {
        let said = hand_over(&bench, text, descriptors).await;
        assert!(said.contains("pager: ") && said.contains(reason), "{reason}: {said}");
    }
}

#[tokio::test]
async fn a_connection_that_is_closed_too_early_is_an_error_and_one_in_parts_is_not() {
    let bench = Bench::new(10);
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    for text in ["", "[{\"size\": 4"] {
        let pager = bench.pager(&me, &[]).await;
        let stream = UnixStream::connect(bench.path("socket")).unwrap();
        if !text.is_empty() {
            send(&stream, text, &[]);
        }
        drop(stream);
        let said = failed(&bench, &pager).await;
        assert!(said.contains("closed the connection"), "{said}");
    }
    let pager = bench.pager(&me, &[]).await;
    let stream = UnixStream::connect(bench.path("socket")).unwrap();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let text = serde_json::to_string(&[mapping(0x7000_0000_0000, 40_960, 0, 4096)]).unwrap();
    send(&stream, &text[..30], &[&null]);
    send(&stream, &text[30..], &[]);
    let said = failed(&bench, &pager).await;
    assert!(said.contains("no userfaultfd"), "all of it was read: {said}");
}

/// A guest that touches a damaged block stands still: the pager has ended, and nothing was put there.
#[tokio::test]
async fn damage_ends_the_pager_with_the_name_of_the_file_and_reaches_no_guest() {
    // Block 8 is the base's; 29 is the older layer's (its blocks: 0, 1, 2, 4, 5, 6, 29, …); 38 the newer one's first.
    for (name, at, block) in
        [("base", 8 * 4096 + 100, 8), ("layer-0", 6 * 4096 + 100, 29), ("layer-1", 100, 38)]
    {
        let bench = Bench::new(200);
        bench.damage(name, at);
        let (mut vmm, pager) = bench.serve(&[200], &[]).await;
        assert!(vmm.run(Do::Read(128, 144)) == bench.part(128, 144), "the rest is as it should be");
        vmm.begin(Do::Read(block, block + 1));
        let said = failed(&bench, &pager).await;
        assert!(said.contains(&format!("{:?} is damaged", bench.path(name))), "{said}");
        vmm.await_faults(1);
        assert!(vmm.is_silent(), "the guest waits");
        assert_eq!(vmm.present(), (128..144).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn damage_found_in_advance_ends_the_pager_too() {
    let bench = Bench::new(2000);
    bench.damage("base", 1500 * 4096);
    let all: Range<u64> = 0..2000;
    let (vmm, pager) = bench.serve(&[2000], &[all]).await;
    let said = failed(&bench, &pager).await;
    assert!(said.contains(&format!("{:?} is damaged", bench.path("base"))), "{said}");
    assert!(vmm.present().iter().all(|block| *block < 1488), "nothing of the chunk was put there");
    assert!(
        rustix::process::waitid(
            rustix::process::WaitId::PidFd(vmm.pidfd().as_fd()),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG,
        )
        .unwrap()
        .is_none()
    );
}
