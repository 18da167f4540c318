//! Loads the library that its argument names and calls it: from threads that were there before, from new ones, in the child of
//! a fork; closes it, and ends threads after that.

use std::ffi::{CString, c_void};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

fn function(library: *mut c_void, name: &str) -> *mut c_void {
    let name = CString::new(name).expect("no NUL");
    // SAFETY: the library is open, and the name ends with a NUL.
    let function = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!function.is_null(), "{name:?}");
    function
}

fn main() {
    // A thread that is there before the library.
    let (early, work) = mpsc::channel::<(extern "C" fn(u32) -> i32, u32)>();
    let old = thread::spawn(move || work.iter().map(|(run, seed)| run(seed)).sum::<i32>());

    let path = CString::new(std::env::args().nth(1).expect("a library")).expect("no NUL");
    // SAFETY: the path ends with a NUL; the library's constructors may run.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    if library.is_null() {
        // SAFETY: after a failure it answers a string.
        let reason = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) };
        panic!("dlopen: {reason:?}");
    }
    // SAFETY: the library's function has this type.
    let run: extern "C" fn(u32, u32) -> i32 =
        unsafe { std::mem::transmute(function(library, "plugin_run")) };
    // SAFETY: as above.
    let keep: extern "C" fn(u32) -> i32 =
        unsafe { std::mem::transmute(function(library, "plugin_keep")) };
    // SAFETY: as above.
    let give_back: extern "C" fn() -> i32 =
        unsafe { std::mem::transmute(function(library, "plugin_give_back")) };

    assert_eq!(run(0, 4), 0, "on the main thread");
    for seed in 1..20 {
        early.send((keep, seed)).expect("it listens");
        let new = thread::spawn(move || run(seed, 2) + keep(1000 + seed));
        assert_eq!(new.join().expect("no panic"), 0, "on a new thread");
    }
    // SAFETY: the child does what the library promises to allow there.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let failed = run(2000, 2) + run(2001, 2);
        // SAFETY: it ends the child at once.
        unsafe { libc::_exit(failed) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and the place is valid.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "in the child of a fork");
    assert_eq!(give_back(), 0);
    // SAFETY: opened above; it stays in memory, and is not called any more but by its own threads.
    assert_eq!(unsafe { libc::dlclose(library) }, 0);
    // Its hooks run as threads end, and its own threads go on.
    drop(early);
    assert_eq!(old.join().expect("no panic"), 0, "on a thread that was there before");
    thread::sleep(Duration::from_millis(400));
    println!("ok: 20 runs, 38 kept, a fork, a close");
}
