//! G1 whatever a peer is doing when `disable()` is called: stopped, traced, or in a system call.

use crate::support::stopper::{Stop, Stopped};
use crate::{BEFORE, LEN, SECRET, each, refuses, untouched, withdraw, word};
use nix::sys::signal::Signal;
use revocable_mmio::OnDisabled;
use std::time::{Duration, Instant};

/// A stopped peer is not waited for, and its first access after that is refused.
#[test]
fn a_stopped_peer() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(BEFORE)));
        peer.signal(Signal::SIGSTOP);
        let since = Instant::now();
        withdraw(region);
        assert!(since.elapsed() < crate::support::patience(Duration::from_secs(10)), "it waits for a stopped process");
        peer.control.tell("load-all a");
        peer.signal(Signal::SIGCONT);
        assert_eq!(peer.control.answer("load-all a"), crate::refused(policy));
        refuses(region, peer, policy, "a");
        peer.signal(Signal::SIGSTOP);
        region.enable().expect("it restores");
        peer.control.tell("load-all a");
        peer.signal(Signal::SIGCONT);
        assert_eq!(peer.control.answer("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    });
}

#[test]
fn a_traced_peer() {
    each(|region, peer, policy| {
        let traced = Stopped::new(peer.pid(), Stop::Now);
        require!(traced.is_ok(), "ptrace is forbidden");
        let mut traced = traced.expect("just seen");
        traced.stands();
        withdraw(region);
        peer.control.tell("load-all a");
        drop(traced);
        assert_eq!(peer.control.answer("load-all a"), crate::refused(policy));
        refuses(region, peer, policy, "a");
    });
}

/// write(2) from the mapping has begun, and waits for room in a pipe. What it has not copied yet it does not get.
#[test]
fn a_peer_in_write() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask(&format!("block-in-write a {LEN}")), "0");
        withdraw(region);
        let seen = peer.number(&format!("unblock-write {:#x}", word(SECRET)));
        // 1000: the call has written everything, ones after what it had copied before.
        assert_eq!(seen, if policy == OnDisabled::AllOnes { 1000 } else { 0 });
        untouched(region);
    });
}

/// read(2) into the mapping has begun, and waits for data.
#[test]
fn a_peer_in_read() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("block-in-read a 4096"), "0");
        withdraw(region);
        let got = peer.ask("unblock-read 0x7777777777777777");
        assert_eq!(got, if policy == OnDisabled::AllOnes { "4096" } else { "EFAULT" });
        untouched(region);
    });
}
