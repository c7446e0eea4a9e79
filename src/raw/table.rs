//! The recovery table: the instructions that may fault, and how each goes on after a fault.
//!
//! Every access puts an [`Entry`] into a section of its own, next to its code, and the linker concatenates them.
//! Four things could lose an entry, and each has a remedy:
//!
//! * *Garbage collection of sections.* The section carries `SHF_GNU_RETAIN`; linkers that are older than the flag keep
//!   the section because of the reference to its `__start_` symbol.
//! * *Inlining.* An access is inlined into its caller, so that it stays one instruction; the caller may be in another code
//!   generation unit, another crate, another shared object. So each unit that contains an access also contains an
//!   `.init_array` entry which passes the table of *its* linked object to [`register`], before any code of that object
//!   runs. The start and stop symbols are hidden: no object sees another one's.
//! * *Several copies of the crate.* Each registers its own tables with itself, and its signal handler passes on the signals
//!   that it does not know. Two copies of one version in one object share a section and both register it, which is
//!   harmless: the section's name has the version of the entry format, and every copy of that format treats an entry alike.
//! * *Unloading.* Once the signal handlers are installed, an object whose table is registered is never unloaded
//!   (`RTLD_NODELETE`): the handlers may walk its table at any time.
#![expect(unsafe_code, reason = "reads a table that the linker laid out")]
// UNSAFETY: walks linker-made arrays and lock-free nodes that are never freed.

// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
#[cfg(not(target_feature = "crt-static"))]
use nix::libc;
use nix::libc::ucontext_t;

pub(super) mod text;

/// A fault comes back as an error.
pub(crate) const RECOVERABLE: bool = true;

/// The interrupted thread's registers, as the kernel saved them. Numbers are those of `register_numbers!`.
pub(super) trait Registers {
    /// Where the thread was.
    fn program_counter(&self) -> usize;
    /// Where it goes on.
    fn set_program_counter(&mut self, to: usize);
    /// A register's value.
    fn get(&self, number: u8) -> usize;
    /// Changes a register; the value is sign-extended.
    fn set(&mut self, number: u8, value: i8);
}

/// Whether the fault at `address` was one of this crate's accesses. If so the thread goes on after it.
///
/// # Safety
///
/// `context` is what the kernel passed to the handler of this fault, and nothing else refers to it.
pub(crate) unsafe fn recover(address: usize, context: *mut ucontext_t) -> bool {
    // SAFETY: the caller's contract.
    let registers = unsafe { &mut (*context).uc_mcontext };
    let Some(entry) = find(registers.program_counter()) else {
        return false;
    };
    if address.wrapping_sub(registers.get(entry.addr)) >= usize::from(entry.window) {
        return false;
    }
    registers.set(entry.set, entry.value);
    registers.set_program_counter(entry.target());
    true
}

/// How one instruction recovers. The `recovery!` macro emits this layout; a change of it needs a new name of the section.
#[repr(C)]
pub(crate) struct Entry {
    /// The instruction, relative to this field.
    at: i32,
    /// The instruction at which to go on, relative to this field.
    target: i32,
    /// Which register tells the code that it faulted.
    set: u8,
    /// Which register holds the address on the region's side.
    addr: u8,
    /// How many bytes from there the instruction (or its loop) may touch.
    window: u8,
    /// What the register is set to.
    value: i8,
}

impl Entry {
    fn at(&self) -> usize {
        (&raw const self.at).addr().wrapping_add_signed(self.at as isize)
    }

    fn target(&self) -> usize {
        (&raw const self.target).addr().wrapping_add_signed(self.target as isize)
    }
}

/// One linked object's table.
struct Table {
    start: *const Entry,
    stop: *const Entry,
    next: *const Table,
}

impl Table {
    fn entries(&self) -> &'static [Entry] {
        let len = (self.stop.addr() - self.start.addr()) / size_of::<Entry>();
        // SAFETY: `register`'s contract: the bounds of one linked object's section, which holds entries only, is
        // never written after relocation, and stays mapped (`keep_loaded`).
        unsafe { core::slice::from_raw_parts(self.start, len) }
    }
}

/// All tables, newest first. Nodes are pushed and never removed.
static TABLES: AtomicPtr<Table> = AtomicPtr::new(core::ptr::null_mut());

/// A handler may walk the tables.
static IN_USE: AtomicBool = AtomicBool::new(false);

fn tables() -> impl Iterator<Item = &'static Table> {
    // SeqCst: at least Acquire, partner of the push in `register`, which makes the node's content visible.
    let mut next = TABLES.load(Ordering::SeqCst).cast_const();
    core::iter::from_fn(move || {
        // SAFETY: null or a node that `register` leaked; none is written after it was published.
        let table = unsafe { next.as_ref() }?;
        next = table.next;
        Some(table)
    })
}

/// Adds the table of one linked object. Called by that object's initialisers, once per code generation unit.
///
/// # Safety
///
/// `start` and `stop` are the bounds of a recovery section in this crate's format.
// Never inlined: the accesses name it, even from other linked objects.
#[inline(never)]
pub(crate) unsafe extern "C" fn register(start: *const Entry, stop: *const Entry) {
    if tables().any(|table| table.start == start) {
        return;
    }
    let node = Box::into_raw(Box::new(Table { start, stop, next: core::ptr::null() }));
    // Relaxed, here and on failure: the pointer is not followed; a stale one fails the exchange.
    let mut head = TABLES.load(Ordering::Relaxed);
    loop {
        // SAFETY: not published yet, so this thread is the only one that knows it.
        unsafe { (*node).next = head };
        match TABLES.compare_exchange_weak(head, node, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => break,
            Err(current) => head = current,
        }
    }
    if IN_USE.load(Ordering::SeqCst) {
        stay_loaded(start);
    }
}

/// Makes every object with a table stay until the process ends: a handler that walks the tables is about to be
/// installed.
pub(crate) fn keep_loaded() {
    // SeqCst, with the push and the load in `register`: either this walk sees a new table, or `register` sees the flag.
    IN_USE.store(true, Ordering::SeqCst);
    for table in tables() {
        stay_loaded(table.start);
    }
}

/// The entry of the instruction at `pc`. No lock, no allocation: for signal handlers.
///
/// A linear search: a few hundred entries of 12 bytes take less time than the kernel needs to raise the signal.
fn find(pc: usize) -> Option<&'static Entry> {
    tables().find_map(|table| table.entries().iter().find(|entry| entry.at() == pc))
}

/// Keeps the shared object that contains `address` loaded until the process ends; for the main program there is nothing
/// to do.
#[cfg(not(target_feature = "crt-static"))]
fn stay_loaded(address: *const Entry) {
    // SAFETY: all zeroes is a valid `Dl_info`: null pointers.
    let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: `info` outlives the call, and any address may be asked for.
    let found = unsafe { libc::dladdr(address.cast(), &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return;
    }
    // SAFETY: a string of the dynamic linker's. NOLOAD: at most finds what is loaded already; the handle is leaked
    // on purpose. It fails for the main program, which isn't unloaded anyway.
    unsafe { libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
}

/// A static program has no objects to unload.
#[cfg(target_feature = "crt-static")]
fn stay_loaded(_address: *const Entry) {}
