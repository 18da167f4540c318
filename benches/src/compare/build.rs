//! Building the children.
//!
//! In two goes: the peers without memcg, whose jemalloc keeps statistics, and memcg.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds every child for the profile that this runner was built for, and answers where they are.
pub(super) fn children() -> Result<PathBuf, Box<dyn Error>> {
    let runner = env::current_exe()?;
    let directory = runner.parent().ok_or("the runner is in a folder")?.to_path_buf();
    let peers = if cfg!(feature = "peers-cxx") { "peers-cxx" } else { "peers" };
    cargo(&directory, &["--no-default-features", "--features", peers, "--bins"])?;
    cargo(&directory, &["--no-default-features", "--features", "ours", "--bin", "on-memcg"])?;
    Ok(directory)
}

fn cargo(directory: &Path, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let target = directory.parent().ok_or("a profile's folder is in the target folder")?;
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let flags = env::var("CXXFLAGS").unwrap_or_default();
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "-p", "memcg-benches", "--profile", profile])
        .args(arguments)
        .arg("--target-dir")
        .arg(target)
        // snmalloc's own build leaves its assertions on without it.
        .env("CXXFLAGS", format!("{flags} -DNDEBUG"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()?;
    if status.success() { Ok(()) } else { Err("the children cannot be built".into()) }
}
