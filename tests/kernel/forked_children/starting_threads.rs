//! A child that is forked while a thread of its parent's starts or ends.
//!
//! The standard library takes a lock there (`std::sys::stack_overflow`), and allocates under it. So a process is forked at
//! each allocation of such a thread, by that thread itself: at one of them it holds the lock, which the child inherits.

use crate::support;
use crate::support::{child, forking};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

struct Forking;

#[global_allocator]
static ALLOCATOR: Forking = Forking;

/// Whether processes are forked, and the thread that starts the others: none is forked there.
static ARMED: AtomicBool = AtomicBool::new(false);
static STARTER: AtomicI32 = AtomicI32::new(0);
static FORKED: AtomicUsize = AtomicUsize::new(0);
static FAILED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// What forks may allocate as well.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Forks one process at a time.
fn step() {
    static TURN: Mutex<()> = Mutex::new(());
    if !ARMED.load(Ordering::Relaxed)
        || nix::unistd::gettid().as_raw() == STARTER.load(Ordering::Relaxed)
        || BUSY.replace(true)
    {
        return;
    }
    if let Ok(_turn) = TURN.lock() {
        let fine = forking::is_fine(|| {
            ARMED.store(false, Ordering::Relaxed);
            super::builds_a_region_of_each_strategy();
            true
        });
        FORKED.fetch_add(1, Ordering::Relaxed);
        if !fine {
            FAILED.store(true, Ordering::Relaxed);
            // Each of the others might take its ten seconds as well.
            ARMED.store(false, Ordering::Relaxed);
        }
    }
    BUSY.set(false);
}

// SAFETY: the system's, by its own contract; a process is forked before the call, when no lock of the allocator's is held.
unsafe impl GlobalAlloc for Forking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        step();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        step();
        // SAFETY: passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[test]
fn a_child_builds_a_region_of_its_own_though_a_thread_was_just_starting_or_ending() {
    support::start();
    let ended = child::alone(|| {
        // More than fit in one node of the library's table of threads.
        const THREADS: usize = 16;
        let all_are_there = Barrier::new(THREADS);
        STARTER.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        ARMED.store(true, Ordering::Relaxed);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| all_are_there.wait());
            }
        });
        ARMED.store(false, Ordering::Relaxed);
        let forked = FORKED.load(Ordering::Relaxed);
        assert!(!FAILED.load(Ordering::Relaxed), "the child number {forked}");
        assert!(forked >= THREADS, "no thread of std's allocates any more: {forked}");
    });
    ended.well();
}
