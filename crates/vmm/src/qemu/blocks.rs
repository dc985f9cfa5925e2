//! The disk as QEMU's block layer sees it.
//!
//! ```text
//!   virtio-blk ── root (raw) ── disk-<top> (qcow2) ── … ── disk-0 (raw)
//! ```
//!
//! Files reach QEMU as descriptors over the control socket ("fd sets"), so it needs to see and own none of them. Each layer
//! is a node named as its file is, without the extension; the base is opened read-only and never probed, whatever its
//! first bytes say.
//!
//! A guest's flush reaches the host's page cache and no further. What survives a crash of the host must have its disk
//! *and* its memory there, and those who write such a snapshot make both durable; a running machine is lost anyway, and
//! every `fsync` in it would wait for the host's disk for nothing.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};
use crate::{DiskFiles, VmmError};

/// The node that the guest's disk is bound to, for good.
pub(super) const ROOT: &str = "root";
/// What is below it until the disk comes.
pub(super) const NOTHING: &str = "nothing";

/// Longest name of a node.
const MAX_NODE_NAME: usize = 31;

/// The node of a disk that has nothing in it.
pub(super) fn nothing() -> Value {
    json!({ "driver": "null-co", "node-name": NOTHING, "size": 1 << 20, "read-zeroes": true })
}

/// The root node, over the node `below`.
pub(super) fn root(below: &str) -> Value {
    json!({ "driver": "raw", "node-name": ROOT, "file": below })
}

/// Builds the disk's nodes and puts them below the root.
pub(super) async fn attach(qmp: &Qmp, disk: DiskFiles<'_>) -> Result<(), VmmError> {
    let base = node_name(disk.base)?;
    add(qmp, disk.base, Access::Read, json!({ "driver": "raw", "node-name": base })).await?;
    let mut below = base;
    for (index, layer) in disk.layers.iter().enumerate() {
        // Others may have the lower ones open too, and QEMU locks what it can write to.
        let access = if index + 1 == disk.layers.len() { Access::Write } else { Access::Read };
        below = add_layer(qmp, layer, json!(below), access).await?;
    }
    qmp.execute("blockdev-reopen", json!({ "options": [root(&below)] })).await?;
    qmp.execute("blockdev-del", json!({ "node-name": NOTHING })).await?;
    Ok(())
}

/// Opens a new layer, with nothing below it yet.
pub(super) async fn stage(qmp: &Qmp, layer: &Path) -> Result<(), VmmError> {
    add_layer(qmp, layer, Value::Null, Access::Write).await.map(drop)
}

/// Puts a staged layer over what is on top.
pub(super) async fn push(qmp: &Qmp, layer: &Path) -> Result<(), VmmError> {
    let (old, new) = (top(qmp).await?, node_name(layer)?);
    qmp.execute("blockdev-snapshot", json!({ "node": old, "overlay": new })).await?;
    Ok(())
}

/// Closes a staged layer that was not used after all.
pub(super) async fn unstage(qmp: &Qmp, layer: &Path) -> Result<(), VmmError> {
    qmp.execute("blockdev-del", json!({ "node-name": node_name(layer)? })).await?;
    Ok(())
}

/// The name of the node that takes the guest's writes.
pub(super) async fn top(qmp: &Qmp) -> Result<String, VmmError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Edge {
        parent: u64,
        child: u64,
    }
    #[derive(Deserialize)]
    struct Node {
        id: u64,
        name: String,
    }
    #[derive(Deserialize)]
    struct Graph {
        nodes: Vec<Node>,
        edges: Vec<Edge>,
    }
    let graph: Graph = qmp.query("x-debug-query-block-graph").await?;
    let id = |name: &str| graph.nodes.iter().find(|node| node.name == name).map(|node| node.id);
    let below = |parent: u64| graph.edges.iter().find(|edge| edge.parent == parent).map(|edge| edge.child);
    let child = id(ROOT).and_then(below);
    graph
        .nodes
        .iter()
        .find(|node| Some(node.id) == child)
        .map(|node| node.name.clone())
        .ok_or(VmmError::NoDisk)
}

/// Changes the capacity of the disk.
pub(super) async fn resize(qmp: &Qmp, bytes: u64) -> Result<(), VmmError> {
    qmp.execute("block_resize", json!({ "node-name": ROOT, "size": bytes })).await?;
    Ok(())
}

async fn add_layer(qmp: &Qmp, path: &Path, below: Value, access: Access) -> Result<String, VmmError> {
    let name = node_name(path)?;
    let node = json!({
        "driver": "qcow2", "node-name": name, "backing": below, "discard": "unmap", "cache": { "no-flush": true },
    });
    add(qmp, path, access, node).await?;
    Ok(name)
}

/// The node's name for a file: QEMU allows letters, digits, `-`, `.` and `_`, and wants a letter first.
fn node_name(path: &Path) -> Result<String, VmmError> {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= MAX_NODE_NAME
        && name.chars().all(plain)
        && name != ROOT
        && name != NOTHING;
    if fits {
        return Ok(name);
    }
    let reason = format!("its name must be a letter and up to {MAX_NODE_NAME} letters, digits, `-` and `_`");
    Err(VmmError::BadPath { what: "a disk", path: path.to_path_buf(), reason })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Adds the node of a file, handed over as descriptors, with `format` over it.
///
/// QEMU locks what it can write to, for as long as any descriptor of that opening is there. When another layer is put on
/// top it opens this one anew for reading only, with the second descriptor, and lets go of the first; so the set must not
/// hold on to that.
async fn add(qmp: &Qmp, path: &Path, access: Access, mut format: Value) -> Result<(), VmmError> {
    let io = |source| VmmError::io("open", path, source);
    let reading = hand_over(qmp, File::open(path).map_err(io)?.as_fd(), None).await?;
    let mut file = json!({ "driver": "file", "filename": reading.file_name() });
    let mut writing = None;
    if access == Access::Write {
        let opened = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        writing = Some(hand_over(qmp, opened.as_fd(), Some(reading)).await?);
        file["discard"] = json!("unmap");
        file["cache"] = json!({ "no-flush": true });
    } else {
        file["read-only"] = json!(true);
        format["read-only"] = json!(true);
    }
    format["file"] = file;
    qmp.execute("blockdev-add", format).await?;
    if let Some(HandedOver { set, fd }) = writing {
        qmp.execute("remove-fd", json!({ "fdset-id": set, "fd": fd })).await?;
    }
    Ok(())
}

/// A descriptor that QEMU has, in a set with others of the same file. It forgets a set with its last user.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct HandedOver {
    #[serde(rename = "fdset-id")]
    set: u64,
    fd: u64,
}

impl HandedOver {
    /// The file name under which QEMU opens one of the set, the one that is open for the same purpose.
    pub(super) fn file_name(self) -> String {
        format!("/dev/fdset/{}", self.set)
    }
}

/// Gives QEMU a descriptor, in a new set or beside another.
pub(super) async fn hand_over(
    qmp: &Qmp,
    fd: BorrowedFd<'_>,
    beside: Option<HandedOver>,
) -> Result<HandedOver, VmmError> {
    let arguments = beside.map_or(Value::Null, |other| json!({ "fdset-id": other.set }));
    let answer = qmp.execute_with("add-fd", arguments, fd).await?;
    serde_json::from_value(answer)
        .map_err(|source| QmpError::Answer { command: "add-fd".to_owned(), source }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_as_their_files_are() {
        assert_eq!(node_name(Path::new("/a/disk-0")).unwrap(), "disk-0");
        assert_eq!(node_name(Path::new("/a/disk-0123456789abcdef.qcow2")).unwrap(), "disk-0123456789abcdef");
        for bad in ["/", "/a/root", "/a/0", "/a/d,b", &format!("/a/{}", "x".repeat(32))] {
            assert!(node_name(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
