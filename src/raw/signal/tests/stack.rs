//! How much of a thread's signal stack the crate's handler takes, beside the frame that the kernel puts there.

use super::handlers::{CALLS, OPEN_UP, foreign_fault, nesting_handler, set_handler, simple_handler};
use crate::raw::test_memory::{PAGE, bus, good, segv};
use crate::raw::{self, Faulted, signal};
use nix::libc::{self, c_int};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const SIZE: usize = 1 << 18;
const UNTOUCHED: u8 = 0xA5;

/// Where a local variable of the handler was.
static AT: AtomicUsize = AtomicUsize::new(0);

extern "C" fn notes_where(signal: c_int) {
    let local = 0_u8;
    AT.store((&raw const local).addr(), SeqCst);
    simple_handler(signal);
}

/// An alternate stack of this thread, of which is known how far it was used.
struct Stack(*mut u8);

impl Stack {
    fn new() -> Self {
        let stack = libc::stack_t { ss_sp: good(SIZE).cast(), ss_flags: 0, ss_size: SIZE };
        // SAFETY: memory that nothing else uses; no handler of this thread runs now.
        assert_eq!(unsafe { libc::sigaltstack(&raw const stack, null_mut()) }, 0);
        Self(stack.ss_sp.cast())
    }

    /// The bytes of the stack that a fault and its handlers use.
    fn used(&self, faults: impl FnOnce()) -> usize {
        // SAFETY: the memory lives, and no handler of this thread runs now.
        unsafe { self.0.write_bytes(UNTOUCHED, SIZE) };
        faults();
        // SAFETY: likewise, all of it initialised.
        let bytes = unsafe { std::slice::from_raw_parts(self.0, SIZE) };
        SIZE - bytes.iter().position(|byte| *byte != UNTOUCHED).unwrap_or(SIZE)
    }

    /// The bytes in use when `notes_where` was called.
    fn depth(&self) -> usize {
        self.0.addr() + SIZE - AT.load(SeqCst)
    }
}

fn opened_up() {
    let page = segv(PAGE);
    OPEN_UP.store(page as usize, SeqCst);
    foreign_fault(page);
}

/// 8 KiB, as Rust's threads have, are enough for two of the kernel's frames, 3.4 KiB each, and what is between them.
pub(super) fn takes_little() {
    let stack = Stack::new();
    let installed = |handler: extern "C" fn(c_int)| {
        set_handler(libc::SIGSEGV, handler as usize, libc::SA_ONSTACK | libc::SA_NODEFER);
    };
    installed(notes_where);
    stack.used(opened_up);
    let frame = stack.depth();
    signal::install().unwrap();
    let all = stack.used(opened_up) - frame;
    let meanwhile = stack.depth() - frame;
    let page = bus(PAGE);
    // SAFETY: `raw`'s contract: the start of a page that only this scenario knows.
    let recovery = stack.used(|| assert_eq!(unsafe { raw::load(page.cast::<u32>()) }, Err(Faulted))) - frame;
    installed(nesting_handler);
    signal::install().unwrap();
    let nested = stack.used(opened_up) - 2 * frame;
    assert_eq!(CALLS.load(SeqCst), 3, "each was passed on");
    println!("frame {frame}, recovery {recovery}, passing on {all}, {meanwhile} while the other runs, nested {nested}");
    assert!(recovery <= 1024, "to recover: {recovery}");
    assert!(all <= 1536, "to pass on: {all}");
    assert!(meanwhile <= 512, "while another handler runs: {meanwhile}");
    assert!(nested <= 1400, "a handler that uses an accessor: {nested}");
}
