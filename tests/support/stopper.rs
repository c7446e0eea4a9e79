//! Stops one thread of this process and no other, as a debugger does: a forked child traces it.
//!
//! UNSAFETY: fork, and ptrace on a thread that the test names; the child runs system calls only.
#![expect(unsafe_code, reason = "fork and ptrace")]

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null_mut;

/// Where a thread is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Wherever it is.
    Now,
    /// On its way into its next ioctl(2).
    AtIoctl,
}

/// A thread that is, or will be, stopped until this is dropped.
pub(crate) struct Stopped {
    child: libc::pid_t,
    /// A byte ends the stop. (Not its end: another test's child may have inherited it.)
    hold: OwnedFd,
    /// Gives a byte once the thread is stopped.
    stands: File,
}

impl Stopped {
    /// Makes a child trace the thread. An error if the system forbids tracing.
    pub(crate) fn new(tid: i32, stop: Stop) -> Result<Self, Errno> {
        // Not for programs that other tests start meanwhile, which may live on.
        let (release, hold) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (stands, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Yama lets only ancestors trace a process, unless the process allows more.
        // SAFETY: takes numbers.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
        // SAFETY: the child makes system calls only, and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(Errno::last());
        }
        if child == 0 {
            // SAFETY: the child's own copy.
            unsafe { libc::close(hold.as_raw_fd()) };
            let code = trace(tid, stop, release.as_raw_fd(), tell.as_raw_fd());
            // SAFETY: ends the child, running nothing.
            unsafe { libc::_exit(code) };
        }
        let mut stands = File::from(stands);
        drop(tell);
        let mut attached = [0];
        match stands.read_exact(&mut attached) {
            Ok(()) => Ok(Self { child, hold, stands }),
            Err(_) => {
                wait_for(child);
                Err(Errno::EPERM)
            }
        }
    }

    /// Waits until the thread is stopped.
    pub(crate) fn stands(&mut self) {
        self.stands.read_exact(&mut [0]).expect("it gets there");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = nix::unistd::write(&self.hold, &[0]);
        wait_for(self.child);
    }
}

fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: a child of ours, and a live integer.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 && Errno::last() == Errno::EINTR {}
}

/// The child attaches and writes a byte: from now on the thread stops at the next place to stop. It writes a byte once the
/// thread is there, and waits for one from `release`.
fn trace(tid: i32, stop: Stop, release: i32, tell: i32) -> i32 {
    let byte = 0u8;
    // SAFETY: attaches to a thread of the parent. No memory is involved.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, null_mut::<u8>(), libc::PTRACE_O_TRACESYSGOOD as usize) } < 0 {
        return 1;
    }
    // SAFETY: one byte of this frame, in all calls.
    let tell = || unsafe { libc::write(tell, (&raw const byte).cast(), 1) };
    // SAFETY: stops the thread that was just attached to.
    unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, null_mut::<u8>(), null_mut::<u8>()) };
    let mut attached = false;
    loop {
        let mut status = 0;
        // SAFETY: a traced thread, and a live integer.
        if unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } < 0 {
            return 2;
        }
        if !libc::WIFSTOPPED(status) {
            return 3;
        }
        if stop == Stop::Now || enters_ioctl(tid, status) {
            break;
        }
        // SAFETY: goes on to the next system call, without a signal.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, tid, null_mut::<u8>(), null_mut::<u8>()) };
        // Not before: the thread would get past a call that comes at once.
        if !std::mem::replace(&mut attached, true) {
            tell();
        }
    }
    if !attached {
        tell();
    }
    tell();
    let mut end = 0u8;
    // SAFETY: a byte of this frame. The parent writes to the pipe to end the stop, or has ended.
    unsafe { libc::read(release, (&raw mut end).cast(), 1) };
    // SAFETY: resumes the thread.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, null_mut::<u8>(), null_mut::<u8>()) };
    0
}

fn enters_ioctl(tid: i32, status: i32) -> bool {
    if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
        return false;
    }
    // `struct ptrace_syscall_info`, which not every C library has: `op` is the first byte, of an entry `nr` is the fourth word.
    const ENTRY: u8 = 1;
    // PTRACE_GET_SYSCALL_INFO is 0x420e.
    let mut info = [0_u64; 11];
    // SAFETY: room for the structure of this request, and its size.
    let got = unsafe { libc::ptrace(0x420e, tid, size_of_val(&info), &raw mut info) };
    got > 0 && info[0].to_ne_bytes()[0] == ENTRY && i64::try_from(info[3]) == Ok(libc::SYS_ioctl)
}
