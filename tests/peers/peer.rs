//! A process that has a descriptor of a region, and nothing of the crate.
//!
//! UNSAFETY: sendmsg(2), and signals to a child that has not been waited for.
#![expect(unsafe_code, reason = "SCM_RIGHTS has no safe form without more features of nix")]

use super::programs::program;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A peer that obeys one command after the other. It is killed when this is dropped.
pub(crate) struct Peer {
    child: Child,
    pub(crate) control: Control,
}

/// The socket by which a peer gets its commands.
pub(crate) struct Control(BufReader<UnixStream>);

impl Peer {
    /// A peer that inherits a descriptor of a region of `len` bytes as its number 0, and maps it as `a`. `None` without a C
    /// compiler.
    pub(crate) fn new(window: OwnedFd, len: usize) -> Option<Self> {
        let mut peer = Self::without_mapping(window, len)?;
        assert_eq!(peer.ask("map a 0"), "ok");
        Some(peer)
    }

    pub(crate) fn without_mapping(window: impl Into<Stdio>, len: usize) -> Option<Self> {
        Self::run(Command::new(program("peer")?), window, len)
    }

    /// The same as another user, for which the test must be root.
    pub(crate) fn of_user(uid: u32, window: OwnedFd, len: usize) -> Option<Self> {
        let mut command = Command::new(program("peer")?);
        command.uid(uid).gid(uid);
        Self::run(command, window, len)
    }

    fn run(mut command: Command, window: impl Into<Stdio>, len: usize) -> Option<Self> {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        // The child has both as its standard input and output, where they are not close-on-exec.
        command.arg(len.to_string()).stdin(window).stdout(OwnedFd::from(theirs)).current_dir(std::env::temp_dir());
        let child = command.spawn().expect("it starts");
        Some(Self { child, control: Control::new(ours) })
    }

    /// The peer's answer to a command; see peer.c for both.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.control.ask(command)
    }

    /// The number that a command returns.
    pub(crate) fn number(&mut self, command: &str) -> i64 {
        let answer = self.ask(command);
        answer.parse().unwrap_or_else(|_| panic!("{command}: {answer}"))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Sends a signal, and waits until it stops or goes on by it.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("a child of ours");
        let wanted = |state: &str| (state == "T") == (signal == Signal::SIGSTOP);
        crate::support::eventually("the signal has come", || wanted(&state(self.pid())));
    }
}

impl Control {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket takes a timeout");
        Self(BufReader::new(socket))
    }

    /// The same socket, for another process.
    pub(crate) fn share(&self) -> OwnedFd {
        self.0.get_ref().try_clone().expect("a descriptor").into()
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer(command)
    }

    /// A command whose answer is read later.
    pub(crate) fn tell(&mut self, command: &str) {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes()).expect("the peer lives");
    }

    pub(crate) fn answer(&mut self, command: &str) -> String {
        let mut line = String::new();
        let got = self.0.read_line(&mut line);
        assert!(line.ends_with('\n'), "the peer did not answer {command:?}: {got:?}");
        line.pop();
        line
    }

    /// Sends a descriptor by SCM_RIGHTS. Returns its number in the peer.
    pub(crate) fn send(&mut self, fd: OwnedFd) -> i64 {
        self.tell("receive");
        let mut byte = 0u8;
        let mut piece = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut space = [0u64; 4];
        // SAFETY: all zeroes is a valid message.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
        // SAFETY: the message is whole.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: the space is larger than one header, and aligned as it needs.
        let header = unsafe { &mut *header };
        (header.cmsg_level, header.cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: computes a size.
        header.cmsg_len = unsafe { libc::CMSG_LEN(4) } as _;
        // SAFETY: computes an address in the space.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: room for one descriptor follows the header.
        unsafe { data.cast::<i32>().write_unaligned(fd.as_raw_fd()) };
        // SAFETY: the message and all that it refers to live in this frame.
        let sent = unsafe { libc::sendmsg(self.0.get_ref().as_raw_fd(), &raw const message, 0) };
        assert_eq!(sent, 1, "sendmsg");
        let answer = self.answer("receive");
        answer.parse().unwrap_or_else(|_| panic!("no descriptor: {answer}"))
    }
}

/// The state of a process, as /proc shows it: R, S, T and so on.
pub(crate) fn state(pid: i32) -> String {
    let stat = crate::support::read_text(format!("/proc/{pid}/stat"));
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that runs until it is dropped: it is killed then.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// A program with a descriptor of a region as its number 0, and `log`, a file, as its number 1. `None` without a C
    /// compiler.
    pub(crate) fn new(name: &str, window: OwnedFd, log: OwnedFd, args: &[&str]) -> Option<Self> {
        let mut command = Command::new(program(name)?);
        command.args(args).stdin(window).stdout(Stdio::from(log)).current_dir(std::env::temp_dir());
        Some(Self(command.spawn().expect("it starts")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
