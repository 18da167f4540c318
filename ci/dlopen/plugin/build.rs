//! The library stays in memory: threads of its own run its code, and so do `fork` and the ends of threads.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
