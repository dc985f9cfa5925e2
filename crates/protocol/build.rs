//! Generates messages, clients and service traits from `proto/`, with a compiler written in Rust so that a build
//! needs no `protoc`.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    const FILES: [&str; 3] =
        ["process/process.proto", "filesystem/filesystem.proto", "wrenn/agent/v1/agent.proto"];
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    connectrpc_build::Config::new()
        .descriptor_set(descriptors)
        .files(&FILES)
        .include_file("services.rs")
        .compile()?;
    Ok(())
}
