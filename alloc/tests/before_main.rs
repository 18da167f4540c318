//! What happens before `main`, where the allocator begins: in several threads at once, and not
//! always with an allocation.

mod support;

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use memcg::Group;
use support::{fork_and, is_case, pass};

#[global_allocator]
static ALLOC: memcg::Memcg = memcg::Memcg::accounting_root();

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

const THREADS: u32 = 4;
static READY: AtomicU32 = AtomicU32::new(0);

extern "C" fn before_main() {
    memcg::unaccounted(|| ());
    let mut threads = [0; THREADS as usize];
    for thread in &mut threads {
        // SAFETY: the place is valid, and `first_allocation` takes any argument.
        let answer =
            unsafe { libc::pthread_create(thread, ptr::null(), first_allocation, ptr::null_mut()) };
        assert_eq!(answer, 0);
    }
    for thread in threads {
        // SAFETY: it was created above, and is joined once.
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    }
}

extern "C" fn first_allocation(_: *mut c_void) -> *mut c_void {
    READY.fetch_add(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) != THREADS {
        std::hint::spin_loop();
    }
    let layout = Layout::new::<u64>();
    // SAFETY: the layout is not of 0 bytes.
    let object = unsafe { std::alloc::alloc(layout) };
    // SAFETY: it is freed with its layout, once.
    unsafe { std::alloc::dealloc(object, layout) };
    ptr::null_mut()
}

#[test]
fn threads_that_begin_together_leave_a_process_that_can_fork() {
    let case = "threads_that_begin_together_leave_a_process_that_can_fork";
    if !is_case(case) {
        return pass(case, case);
    }
    fork_and(|| drop(vec![0_u8; 100]));
}

#[test]
fn a_scope_before_the_first_allocation_does_not_decide_what_the_root_is() {
    Group::root().set_max(1 << 40).expect("the root is accounted");
}
