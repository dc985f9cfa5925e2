//! qcow2 layers, with QEMU's own tools as writer and as judge.

use std::path::Path;
use std::process::Command;

use wrenn_disk::{Chain, MIB, Qcow2Disks};

use super::Kind;

pub(crate) struct Qcow2;

impl Kind for Qcow2 {
    type Disks = Qcow2Disks;
    const SUFFIX: &str = ".qcow2";
    const EMPTY: u64 = MIB;
    const SMALL_SYSTEM: u64 = 32 * MIB;

    fn write(chain: &Chain, at: usize, length: usize, value: u8) {
        match value {
            0 => io(chain.top(), &[format!("write -z -u {at} {length}")]),
            _ => io(chain.top(), &[format!("write -P {value} {at} {length}")]),
        }
    }

    fn discard(chain: &Chain, at: usize, length: usize) -> bool {
        io(chain.top(), &[format!("discard {at} {length}")]);
        true
    }

    fn content(chain: &Chain) -> Vec<u8> {
        let raw = tempfile::NamedTempFile::new().unwrap();
        let (from, to) = (chain.top().to_str().unwrap(), raw.path().to_str().unwrap());
        qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", from, to]);
        std::fs::read(raw.path()).unwrap()
    }

    fn assert_sound(chain: &Chain) {
        for layer in &chain.layers {
            qemu("qemu-img", &["check", "-q", "-f", "qcow2", layer.to_str().unwrap()]);
        }
        let info = qemu("qemu-img", &["info", "-f", "qcow2", "--output=json", chain.top().to_str().unwrap()]);
        assert!(info.contains(&format!("\"virtual-size\": {},", chain.virtual_bytes)), "{info}");
    }
}

/// Runs a tool of QEMU's to success and returns what it printed.
pub(crate) fn qemu(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs commands of `qemu-io` on the top of a chain, like a VMM that runs and is stopped.
pub(crate) fn io(top: &Path, commands: &[String]) {
    let mut args = vec!["-f", "qcow2", "-d", "unmap"];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(top.to_str().unwrap());
    let said = qemu("qemu-io", &args);
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}
