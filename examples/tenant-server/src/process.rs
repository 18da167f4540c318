//! What the system says of this process, read without allocating.

use std::fs::File;
use std::io::Read;

/// Memory of this process that is resident, in bytes; 0 where the system does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let mut text = [0; 128];
    let read = File::open("/proc/self/statm").and_then(|mut file| file.read(&mut text));
    let text = core::str::from_utf8(&text[..read.unwrap_or(0)]).unwrap_or("");
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * page_size()
}

fn page_size() -> u64 {
    // SAFETY: `sysconf` only reads; an unknown name would give -1.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_system_tells() {
        assert!(super::resident_bytes() > 100_000);
    }
}
