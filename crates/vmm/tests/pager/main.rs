//! The pager against a real userfaultfd of another process. Pagers and VMMs are this test binary too, started anew.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod life;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod vmm;

/// What a pager is when this binary is run as one.
#[test]
#[ignore = "it is the pager of other tests, and does nothing by itself"]
fn be_pager() {
    if std::env::var_os("WRENN_PAGER").is_some() {
        wrenn_vmm::pager::serve().unwrap();
    }
}

#[test]
#[ignore = "it is the VMM of other tests, and does nothing by itself"]
fn be_vmm() {
    vmm::be();
}

#[test]
#[ignore = "it is the agent of other tests, and does nothing by itself"]
fn be_agent() {
    life::be_agent();
}
