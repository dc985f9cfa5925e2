//! Generates messages, clients and service traits from `proto/`, with a compiler written in Rust so that a build
//! needs no `protoc`.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 3] =
        ["process/process.proto", "filesystem/filesystem.proto", "wrenn/agent/v1/agent.proto"];
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    let mut file = File::create(&descriptors)?;
    file.write_all(&compiler.encode_file_descriptor_set())?;
    // The generator has cargo watch this file. Written during the build, it would be newer than the build's begin, and
    // every build would find everything out of date. What it is made of is watched above.
    file.set_modified(SystemTime::UNIX_EPOCH)?;
    connectrpc_build::Config::new()
        .descriptor_set(descriptors)
        .files(&FILES)
        .include_file("services.rs")
        .compile()?;
    Ok(())
}
