//! Reading an eventfd without waiting for it.
//!
//! UNSAFETY: one system call that writes to a buffer of its own.
#![expect(unsafe_code, reason = "preadv2 is not wrapped elsewhere")]

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes the count of an eventfd, if there is one. Never waits, though the descriptor may be a blocking one (O_NONBLOCK
/// would be set for every process that shares it) and another reader of it may be faster.
pub(crate) fn take(eventfd: BorrowedFd<'_>) {
    let mut count = [0_u8; 8];
    let into = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // An offset of -1 is the file's own position, and an eventfd has none: this is read(2) with flags.
    // SAFETY: `into` is a live buffer of 8 bytes, and the call writes no more than that.
    let taken = unsafe { libc::preadv2(eventfd.as_raw_fd(), &raw const into, 1, -1, libc::RWF_NOWAIT) };
    if taken >= 0 || !matches!(Errno::last(), Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) {
        return;
    }
    // Before Linux 5.8, or in a sandbox. Another reader that comes in between makes this one wait for the next signal.
    let mut fds = [PollFd::new(eventfd, PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        let _ = nix::unistd::read(eventfd, &mut count);
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EventFd;
    use std::os::fd::AsFd;

    #[test]
    fn an_eventfd_that_counts_nothing_is_not_waited_for() {
        let eventfd = EventFd::new().expect("an eventfd, and a blocking one");
        eventfd.write(3).expect("signalled");
        super::take(eventfd.as_fd());
        // As after a poll, when another reader was faster.
        super::take(eventfd.as_fd());
        eventfd.write(1).expect("signalled");
        assert_eq!(eventfd.read().expect("an eventfd"), 1, "it was emptied");
    }
}
