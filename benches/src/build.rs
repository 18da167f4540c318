//! Building the children: the binaries that `compare` and `counts` run.
//!
//! The peers without memcg, whose jemalloc keeps statistics; memcg; and builds of memcg with a flag, each in a
//! target folder of its own, so that nothing else is built anew.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the children are.
#[derive(Clone, Debug)]
pub struct Children {
    /// The folder of the peers, and of memcg as it is.
    pub directory: PathBuf,
    /// That of memcg with accounting compiled out.
    pub unaccounted: PathBuf,
    /// Whether the peers that need a C++ compiler are there.
    pub cxx: bool,
}

/// Builds every child for the profile that this runner was built for.
///
/// # Errors
///
/// If one cannot be built.
pub fn children() -> Result<Children, Box<dyn Error>> {
    let directory = directory()?;
    let target = target(&directory)?.to_path_buf();
    let cxx = has_cxx();
    let peers = if cxx { "peers-cxx" } else { "peers" };
    cargo(&directory, &target, &["--features", peers, "--bins"], "")?;
    cargo(&directory, &target, &OURS, "")?;
    let unaccounted = ours_with("unaccounted")?;
    Ok(Children { directory, unaccounted, cxx })
}

/// Builds memcg's children with `--cfg memcg_<flag>`, and answers the folder that they are in.
///
/// # Errors
///
/// If it cannot be built.
pub fn ours_with(flag: &str) -> Result<PathBuf, Box<dyn Error>> {
    let directory = directory()?;
    let target = target(&directory)?.join(flag);
    cargo(&directory, &target, &OURS, &format!("--cfg memcg_{flag}"))?;
    let profile = directory.file_name().ok_or("a profile has a name")?;
    Ok(target.join(profile))
}

/// What memcg's children are built from: every binary that its feature has.
const OURS: [&str; 8] = [
    "--features",
    "ours",
    "--bin",
    "on-memcg",
    "--bin",
    "on-memcg-alone",
    "--bin",
    "on-memcg-tenants",
];

/// The folder of the runner.
fn directory() -> Result<PathBuf, Box<dyn Error>> {
    let runner = env::current_exe()?;
    Ok(runner.parent().ok_or("the runner is in a folder")?.to_path_buf())
}

fn target(directory: &Path) -> Result<&Path, Box<dyn Error>> {
    Ok(directory.parent().ok_or("a profile's folder is in the target folder")?)
}

/// Whether there is a compiler for the peers that are written in C++.
fn has_cxx() -> bool {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let asked = Command::new(compiler)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

fn cargo(
    directory: &Path,
    target: &Path,
    arguments: &[&str],
    rustflags: &str,
) -> Result<(), Box<dyn Error>> {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "-p", "memcg-benches", "--no-default-features"])
        .args(["--profile", profile])
        .args(arguments)
        .arg("--target-dir")
        .arg(target)
        // snmalloc's own build leaves its assertions on without it.
        .env("CXXFLAGS", with("CXXFLAGS", "-DNDEBUG"))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !rustflags.is_empty() {
        command.env("RUSTFLAGS", with("RUSTFLAGS", rustflags));
    }
    let built = command.status()?.success();
    if built { Ok(()) } else { Err("the children cannot be built".into()) }
}

/// The flags of the environment, and one more.
fn with(variable: &str, flag: &str) -> String {
    format!("{} {flag}", env::var(variable).unwrap_or_default())
}
