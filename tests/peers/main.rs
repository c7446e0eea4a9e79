//! Regions that other processes map: G1 and G2 judged by plain C programs (`*.c`), which are compiled here, get a descriptor,
//! and know nothing of the crate.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod deaths;
mod fuzz;
mod g1_in_any_state;
mod g1_mappings;
mod g1_pins;
mod g1_without_pause;
mod g2_hunt;
mod hostile;
mod huge_pages;
mod limits;
mod log;
mod mutants;
mod peer;
mod programs;

use peer::Peer;
use revocable_mmio::{OnDisabled, Region, ShareAccess};
use std::os::fd::OwnedFd;

const PAGE: usize = 4096;
/// What peers can be given while a region is disabled.
const POLICIES: [OnDisabled; 2] = [OnDisabled::Sigbus, OnDisabled::AllOnes];
/// Bytes of the content while it is enabled, and while it is withdrawn.
const BEFORE: u8 = 0x11;
const SECRET: u8 = 0x5e;
/// More than a pipe takes (64 KiB, pipe(7)).
const LEN: usize = 32 * PAGE;

fn shared(len: usize, peers: OnDisabled) -> Region {
    Region::builder(len).name("peers").shared(peers).build().expect("a window, a vault and a pipe can be had")
}

fn writable(region: &Region) -> OwnedFd {
    region.share(ShareAccess::ReadWrite).expect("a descriptor can be had")
}

fn word(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// A region of [`LEN`] bytes with a peer that maps it, for each policy.
fn each(test: impl Fn(&Region, &mut Peer, OnDisabled)) {
    support::start();
    for policy in POLICIES {
        let region = shared(LEN, policy);
        region.owner().fill(0, BEFORE, LEN).expect("it has memory");
        let Some(mut peer) = Peer::new(writable(&region), LEN) else { return };
        test(&region, &mut peer, policy);
    }
}

/// Withdraws the content, and changes it, so that whoever reads the change has reached it.
fn withdraw(region: &Region) {
    region.disable().expect("it revokes");
    region.owner().fill(0, SECRET, region.len()).expect("it has memory");
}

/// The content is what the owner has made of it while no peer reached it.
fn untouched(region: &Region) {
    let mut content = vec![0; region.len()];
    region.owner().read_slice(0, &mut content).expect("it has memory");
    let changed = content.iter().position(|byte| *byte != SECRET);
    assert_eq!(changed, None, "a peer's store has reached withdrawn content");
}

/// What a load of every page gets while disabled.
fn refused(policy: OnDisabled) -> &'static str {
    if policy == OnDisabled::AllOnes { "0xffffffffffffffff everywhere" } else { "SIGBUS BUS_ADRERR everywhere" }
}

/// What a system call on `len` bytes of a mapping gets while disabled.
fn call(policy: OnDisabled, len: usize) -> String {
    if policy == OnDisabled::AllOnes { len.to_string() } else { "EFAULT".to_owned() }
}

/// Checks G1 for these mappings of a peer: what is loaded, stored, written and read by them, and that all is back after
/// that.
fn check(region: &Region, peer: &mut Peer, policy: OnDisabled, mappings: &str) {
    for name in mappings.chars() {
        assert_eq!(peer.ask(&format!("load-all {name}")), format!("{:#x} everywhere", word(BEFORE)), "{name}");
    }
    withdraw(region);
    refuses(region, peer, policy, mappings);
    region.enable().expect("it restores");
    for name in mappings.chars() {
        assert_eq!(peer.ask(&format!("load-all {name}")), format!("{:#x} everywhere", word(SECRET)), "{name}");
    }
}

/// Checks G1 for these mappings of a peer while the region is withdrawn.
fn refuses(region: &Region, peer: &mut Peer, policy: OnDisabled, mappings: &str) {
    for name in mappings.chars() {
        assert_eq!(peer.ask(&format!("load-all {name}")), refused(policy), "{name}");
        let byte = if policy == OnDisabled::AllOnes { "0xff" } else { "SIGBUS BUS_ADRERR at 0x1fff" };
        assert_eq!(peer.ask(&format!("load-byte {name} 0x1fff")), byte, "{name}");
        assert_eq!(peer.ask(&format!("write {name} 0x3000 0x2000")), call(policy, 0x2000), "{name}");
        let (pid, at) = (peer.pid(), usize::try_from(peer.number(&format!("address {name}"))).expect("an address"));
        let mut copied = [0; 64];
        let got = support::raw::read_process(pid, at, &mut copied);
        match policy {
            OnDisabled::AllOnes => assert_eq!((got, copied), (Ok(64), [0xff; 64])),
            _ => assert_eq!((got, copied), (Err(nix::errno::Errno::EFAULT), [0; 64])),
        }
    }
    for name in mappings.chars() {
        let stored = if policy == OnDisabled::AllOnes { "ok" } else { "SIGBUS BUS_ADRERR at 0x2808" };
        assert_eq!(peer.ask(&format!("store {name} 0x2808 0x77")), stored, "{name}");
        assert_eq!(peer.ask(&format!("read {name} 0x4000 0x1000")), call(policy, 0x1000), "{name}");
    }
    untouched(region);
}
