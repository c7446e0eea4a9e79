//! Attacks from outside: processes made in all ways, and system calls on other processes' memory.
//!
//! UNSAFETY: system calls with addresses that the tests take from live mappings, or know to be refused; the kernel checks them.
#![expect(unsafe_code, reason = "system calls")]

use crate::support::forking::reap;
use nix::errno::Errno;
use nix::libc;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

type Body<'a> = Box<dyn FnMut() -> c_int + 'a>;

/// A process made by clone(2), and the code that it runs. It is killed and waited for on drop.
pub(super) struct Cloned<'a> {
    pid: c_int,
    /// Boxed twice, because the child has the address of the inner box, which must not move.
    _body: Box<Body<'a>>,
    _stack: Vec<u8>,
}

/// Runs `child` in a process made with these flags of clone(2), which must not make a thread. With `CLONE_VFORK` it
/// returns when the child has ended.
///
/// The child must neither allocate nor lock. With `CLONE_VM` it has the calling thread's thread-locals, which that
/// thread must leave alone until the child has ended.
pub(super) fn cloned<'a>(flags: c_int, child: impl FnMut() -> c_int + 'a) -> Cloned<'a> {
    extern "C" fn run(body: *mut c_void) -> c_int {
        // A test that is killed must not leave the child behind, which has the pipes of the test's output.
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // SAFETY: the box that `Cloned` keeps until the child has ended, and that nothing else uses.
        let body = unsafe { &mut *body.cast::<Body<'_>>() };
        body()
    }
    let mut body: Box<Body<'a>> = Box::new(Box::new(child));
    let mut stack = vec![0_u8; 256 << 10];
    let top = stack.as_mut_ptr().wrapping_add(stack.len());
    let top = top.wrapping_sub(top.addr() % 16);
    let arg = (&raw mut *body).cast::<c_void>();
    // SAFETY: a stack and a body that outlive the child: see `Cloned`.
    let pid = unsafe { libc::clone(run, top.cast(), flags | libc::SIGCHLD, arg) };
    assert!(pid > 0, "clone: {}", Errno::last());
    Cloned { pid, _body: body, _stack: stack }
}

impl Cloned<'_> {
    pub(super) fn kill(&self) {
        // SAFETY: a child of this process that has not been waited for.
        let rc = unsafe { libc::kill(self.pid, libc::SIGKILL) };
        assert_eq!(rc, 0, "kill: {}", Errno::last());
    }

    pub(super) fn has_ended(&self) -> bool {
        // SAFETY: all zeroes is a valid siginfo.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let pid = libc::id_t::try_from(self.pid).expect("positive");
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        // SAFETY: looks at a child of ours; the siginfo is live.
        let rc = unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, flags) };
        assert_eq!(rc, 0, "waitid: {}", Errno::last());
        // SAFETY: a child's, or still all zeroes.
        unsafe { info.si_pid() == self.pid }
    }

    /// Its exit code, or 128 plus the signal that killed it.
    pub(super) fn wait(mut self) -> c_int {
        let pid = std::mem::replace(&mut self.pid, 0);
        reap(pid)
    }
}

impl Drop for Cloned<'_> {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.kill();
            reap(self.pid);
        }
    }
}

pub(super) fn at(addr: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(addr)
}

fn answer(n: isize) -> Result<usize, Errno> {
    usize::try_from(n).map_err(|_| Errno::last())
}

/// process_vm_writev(2) into another process's memory.
pub(super) fn write_process(pid: i32, addr: usize, from: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let remote = libc::iovec { iov_base: at(addr), iov_len: from.len() };
    // SAFETY: the local piece is only read, and the kernel checks the remote one.
    answer(unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) })
}

/// process_vm_readv(2) from this process's own memory into `into`, which may be any address: the kernel checks it.
pub(super) fn read_own_memory(addr: usize, into: usize, len: usize) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: at(into), iov_len: len };
    let remote = libc::iovec { iov_base: at(addr), iov_len: len };
    let pid = nix::unistd::getpid().as_raw();
    // SAFETY: the kernel checks both pieces, and the local one is used as raw memory only.
    answer(unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) })
}

/// process_madvise(2) on another process.
pub(super) fn advise_process(pid: i32, addr: usize, len: usize, advice: c_int) -> Result<(), Errno> {
    // SAFETY: numbers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: a descriptor that the kernel has just made.
    let pidfd = unsafe { OwnedFd::from_raw_fd(c_int::try_from(fd).expect("small")) };
    let range = libc::iovec { iov_base: at(addr), iov_len: len };
    // SAFETY: the kernel checks the range; no advice that it takes from others changes what is in shared memory.
    let rc =
        unsafe { libc::syscall(libc::SYS_process_madvise, pidfd.as_raw_fd(), &raw const range, 1_usize, advice, 0) };
    Errno::result(rc).map(drop)
}

/// Lets every process trace this one, where Yama allows that to ancestors only.
pub(super) fn let_others_trace() {
    // SAFETY: numbers only; kernels without Yama know no such call, and need none.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
}

/// mlock2(2): locks present pages now, and others when they are faulted in.
pub(super) fn lock_on_fault(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: locks pages of a mapping of the test's.
    Errno::result(unsafe { libc::syscall(libc::SYS_mlock2, at(addr), len, libc::MLOCK_ONFAULT) }).map(drop)
}

/// A shared mapping of a file, as any process with a descriptor can make it.
pub(super) fn map(fd: BorrowedFd<'_>, len: usize, prot: c_int) -> Result<usize, Errno> {
    // SAFETY: without MAP_FIXED the kernel picks a free address.
    let got = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    if got == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(got.expose_provenance()) }
}

/// vmsplice(2): gives the pages at an address to a pipe.
pub(super) fn splice_pages(into: BorrowedFd<'_>, addr: usize, len: usize) -> Result<usize, Errno> {
    let pages = libc::iovec { iov_base: at(addr), iov_len: len };
    // SAFETY: the kernel checks the range.
    answer(unsafe { libc::vmsplice(into.as_raw_fd(), &raw const pages, 1, 0) })
}

/// pwrite(2) from an address.
pub(super) fn write_at_start(file: BorrowedFd<'_>, addr: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: the kernel reads at an address of the test's, or refuses to.
    answer(unsafe { libc::pwrite(file.as_raw_fd(), at(addr), len, 0) })
}

/// pread(2) to an address.
pub(super) fn read_from_start(file: BorrowedFd<'_>, addr: usize, len: usize) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at an address of the test's, or refuses to.
    answer(unsafe { libc::pread(file.as_raw_fd(), at(addr), len, 0) })
}

/// Registers the pages at an address as a ring's fixed buffer.
pub(super) fn fix_pages(ring: &io_uring::IoUring, addr: usize, len: usize) -> Result<(), Errno> {
    let buffer = libc::iovec { iov_base: at(addr), iov_len: len };
    // SAFETY: the kernel pins the pages, or refuses to. The tests unregister them before they go on.
    let done = unsafe { ring.submitter().register_buffers(&[buffer]) };
    done.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
}

/// Queues a request.
pub(super) fn push(ring: &mut io_uring::IoUring, request: &io_uring::squeue::Entry) {
    // SAFETY: its file and its memory live until it is done, which the tests wait for; the kernel checks the address.
    unsafe { ring.submission().push(request) }.expect("there is room");
}
