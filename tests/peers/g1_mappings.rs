//! G1 for every kind of mapping that a peer can make of its descriptor.

use crate::peer::Peer;
use crate::support;
use crate::{BEFORE, LEN, SECRET, check, each, refused, refuses, shared, untouched, withdraw, word, writable};
use nix::libc::{MADV_HUGEPAGE, MADV_POPULATE_WRITE};
use revocable_mmio::{OnDisabled, Region, ResetGroup, ShareAccess};
use std::time::{Duration, Instant};

#[test]
fn an_inherited_descriptor() {
    each(|region, peer, policy| check(region, peer, policy, "a"));
}

#[test]
fn a_descriptor_by_scm_rights_and_one_reopened_by_proc() {
    each(|region, peer, policy| {
        let sent = peer.control.send(writable(region));
        let reopened = peer.number("reopen 0");
        assert_eq!(peer.ask(&format!("map b {sent}")), "ok");
        assert_eq!(peer.ask(&format!("map c {reopened}")), "ok");
        // A mapping keeps the file.
        for fd in [0, sent, reopened] {
            peer.number(&format!("close {fd}"));
        }
        check(region, peer, policy, "abc");
    });
}

#[test]
fn a_mapping_that_was_moved_mapped_twice_locked_or_advised() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("map b 0"), "ok");
        assert_eq!(peer.ask("remap b"), "ok");
        assert_eq!(peer.ask("map c 0"), "ok");
        assert_eq!(peer.ask("lock c"), "0");
        assert_eq!(peer.ask("map d 0"), "ok");
        peer.ask(&format!("advise d {MADV_HUGEPAGE}"));
        check(region, peer, policy, "abcd");
    });
}

#[test]
fn a_mapping_for_loads_only() {
    support::start();
    for policy in crate::POLICIES {
        let region = shared(LEN, policy);
        region.owner().fill(0, BEFORE, LEN).expect("it has memory");
        let window = region.share(ShareAccess::ReadOnly).expect("a descriptor can be had");
        let Some(mut peer) = Peer::without_mapping(window, LEN) else { return };
        assert_eq!(peer.ask("map a 0"), "EACCES");
        assert_eq!(peer.ask("map-ro a 0"), "ok");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(BEFORE)));
        assert_eq!(peer.ask("store a 0x2808 0x77"), "SIGSEGV code 2 at 0x2808");
        assert_eq!(peer.ask("truncate 0 0"), "EINVAL");
        assert_eq!(peer.ask("punch 0 0 0x1000"), "EBADF");
        assert_eq!(peer.ask("pwrite 0 0 1"), "EBADF");
        withdraw(&region);
        assert_eq!(peer.ask("load-all a"), refused(policy));
        untouched(&region);
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    }
}

/// Thousands of mappings, by a peer that may only load. What that costs is printed: the kernel visits each of them.
#[test]
fn thousands_of_mappings() {
    support::start();
    for policy in crate::POLICIES {
        let region = shared(LEN, policy);
        let window = region.share(ShareAccess::ReadOnly).expect("a descriptor can be had");
        let Some(mut peer) = Peer::without_mapping(window, LEN) else { return };
        let few = toggled(&region);
        let count = peer.number("many - 20000");
        let many = toggled(&region);
        println!("{policy:?}: disable and enable with no mapping {few:?}, with {count} {many:?}");
        withdraw(&region);
        assert_eq!(peer.ask("map-ro a 0"), "ok");
        assert_eq!(peer.ask("load-all a"), refused(policy));
    }
}

fn toggled(region: &Region) -> [Duration; 2] {
    let since = Instant::now();
    region.disable().expect("it revokes");
    let disabled = since.elapsed();
    region.enable().expect("it restores");
    [disabled, since.elapsed() - disabled]
}

#[test]
fn mappings_made_while_disabled() {
    each(|region, peer, policy| {
        withdraw(region);
        assert_eq!(peer.ask("map b 0"), "ok");
        let reopened = peer.number("reopen 0");
        assert_eq!(peer.ask(&format!("map c {reopened}")), "ok");
        let sent = peer.control.send(writable(region));
        assert_eq!(peer.ask(&format!("map d {sent}")), "ok");
        assert_eq!(peer.ask("remap d"), "ok");
        // Locking needs the pages.
        peer.ask("lock c");
        peer.ask(&format!("advise c {MADV_POPULATE_WRITE}"));
        refuses(region, peer, policy, "abcd");
        region.enable().expect("it restores");
        for name in "abcd".chars() {
            assert_eq!(peer.ask(&format!("load-all {name}")), format!("{:#x} everywhere", word(SECRET)));
        }
    });
}

/// A peer does not wait: nothing of the region's serves its faults.
#[test]
fn under_block_a_peer_gets_sigbus() {
    support::start();
    let region = shared(LEN, OnDisabled::Block);
    region.owner().fill(0, BEFORE, LEN).expect("it has memory");
    let Some(mut peer) = Peer::new(writable(&region), LEN) else { return };
    check(&region, &mut peer, OnDisabled::Sigbus, "a");
}

/// Together with a region that is not shared, and with another one that is.
#[test]
fn regions_of_a_reset_group() {
    each(|region, peer, policy| {
        let plain = Region::builder(LEN).build().expect("it can be made");
        let other = shared(LEN, policy);
        let Some(mut neighbour) = Peer::new(writable(&other), LEN) else { return };
        let group = ResetGroup::new([region, &plain, &other]);
        group.disable().expect("it revokes");
        region.owner().fill(0, SECRET, LEN).expect("it has memory");
        for peer in [&mut *peer, &mut neighbour] {
            assert_eq!(peer.ask("load-all a"), refused(policy));
        }
        untouched(region);
        group.enable().expect("it restores");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
        assert_eq!(neighbour.ask("load-all a"), "0 everywhere");
        let during = group.reset(|_| [peer.ask("load-all a"), neighbour.ask("load-all a")]).expect("it resets");
        assert_eq!(during, [refused(policy); 2], "during a reset");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    });
}

#[test]
fn a_region_that_starts_disabled() {
    support::start();
    for policy in crate::POLICIES {
        let region = Region::builder(LEN).shared(policy).disabled().build().expect("it can be made");
        region.owner().fill(0, SECRET, LEN).expect("it has memory");
        let Some(mut peer) = Peer::new(writable(&region), LEN) else { return };
        refuses(&region, &mut peer, policy, "a");
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    }
}

/// A page of a private mapping that was stored to is the peer's own memory. A truncation takes that away too.
#[test]
fn private_mappings_touched_and_not() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("map-private b 0"), "ok");
        assert_eq!(peer.ask("map-private c 0"), "ok");
        assert_eq!(peer.ask("load-all c"), format!("{:#x} everywhere", word(BEFORE)));
        assert_eq!(peer.ask("store c 0x2800 0x77"), "ok");
        withdraw(region);
        for name in ["b", "c"] {
            assert_eq!(peer.ask(&format!("load {name} 0x1000")), one(policy, 0x1000), "{name}");
        }
        assert_eq!(peer.ask("load b 0x2800"), one(policy, 0x2800));
        let kept = if policy == OnDisabled::AllOnes { "0x77".to_owned() } else { one(policy, 0x2800) };
        assert_eq!(peer.ask("load c 0x2800"), kept);
        // The rest of that page was copied when it was enabled.
        let kept = if policy == OnDisabled::AllOnes { format!("{:#x}", word(BEFORE)) } else { one(policy, 0x2000) };
        assert_eq!(peer.ask("load c 0x2000"), kept);
        untouched(region);
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load-all b"), format!("{:#x} everywhere", word(SECRET)));
        untouched(region);
    });
}

fn one(policy: OnDisabled, offset: usize) -> String {
    if policy == OnDisabled::AllOnes { format!("{:#x}", u64::MAX) } else { format!("SIGBUS BUS_ADRERR at {offset:#x}") }
}

#[test]
fn children_that_a_peer_has_forked() {
    each(|region, peer, policy| {
        assert_eq!(peer.ask("map-private b 0"), "ok");
        // The child takes the conversation over.
        assert_eq!(peer.ask("fork"), "0");
        withdraw(region);
        assert_eq!(peer.ask("load-all a"), refused(policy));
        assert_eq!(peer.ask("load-all b"), refused(policy));
        // A grandchild, made while disabled.
        assert_eq!(peer.ask("fork"), "0");
        assert_eq!(peer.ask("load-all a"), refused(policy));
        peer.ask("store a 0x2800 0x77");
        untouched(region);
        region.enable().expect("it restores");
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    });
}
