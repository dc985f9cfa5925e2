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

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::qmp::Qmp;
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
    let file = open(qmp, disk.base, Access::Read).await?;
    let node = json!({ "driver": "raw", "node-name": base, "read-only": true, "file": file });
    qmp.execute("blockdev-add", node).await?;
    let mut below = base;
    for layer in disk.layers {
        below = add_layer(qmp, layer, json!(below)).await?;
    }
    qmp.execute("blockdev-reopen", json!({ "options": [root(&below)] })).await?;
    qmp.execute("blockdev-del", json!({ "node-name": NOTHING })).await?;
    Ok(())
}

/// Puts a new layer over what is on top.
pub(super) async fn push(qmp: &Qmp, layer: &Path) -> Result<(), VmmError> {
    let old = top(qmp).await?;
    let new = add_layer(qmp, layer, Value::Null).await?;
    let switched = qmp.execute("blockdev-snapshot", json!({ "node": old, "overlay": new })).await;
    if let Err(error) = switched {
        // Not in use: the disk stays as it was.
        let _absent = qmp.execute("blockdev-del", json!({ "node-name": new })).await;
        return Err(error.into());
    }
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
        .ok_or_else(|| VmmError::NoDisk)
}

/// Changes the capacity of the disk.
pub(super) async fn resize(qmp: &Qmp, bytes: u64) -> Result<(), VmmError> {
    qmp.execute("block_resize", json!({ "node-name": ROOT, "size": bytes })).await?;
    Ok(())
}

async fn add_layer(qmp: &Qmp, path: &Path, below: Value) -> Result<String, VmmError> {
    let name = node_name(path)?;
    let file = open(qmp, path, Access::Write).await?;
    let node = json!({
        "driver": "qcow2", "node-name": name, "file": file, "backing": below, "discard": "unmap",
        "cache": { "no-flush": true },
    });
    qmp.execute("blockdev-add", node).await?;
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

/// Hands a file over, and describes the node that reads it.
async fn open(qmp: &Qmp, path: &Path, access: Access) -> Result<Value, VmmError> {
    let write = access == Access::Write;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|source| VmmError::io("open", path, source))?;
    let set = hand_over(qmp, file.as_fd()).await?;
    Ok(if write {
        json!({ "driver": "file", "filename": set, "discard": "unmap", "cache": { "no-flush": true } })
    } else {
        json!({ "driver": "file", "filename": set, "read-only": true })
    })
}

/// Gives QEMU a descriptor, and says under which file name it opens it. QEMU forgets the descriptor with its last user.
pub(super) async fn hand_over(qmp: &Qmp, fd: std::os::fd::BorrowedFd<'_>) -> Result<String, VmmError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Added {
        fdset_id: u64,
    }
    let answer = qmp.execute_with("add-fd", Value::Null, fd).await?;
    let added: Added = serde_json::from_value(answer)
        .map_err(|source| crate::qmp::QmpError::Answer { command: "add-fd".to_owned(), source })?;
    Ok(format!("/dev/fdset/{}", added.fdset_id))
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
