//! Huge pages in the window, which any peer can make of it (MADV_COLLAPSE), one with a descriptor for loads too.

use crate::peer::Peer;
use crate::support;
use crate::{BEFORE, PAGE, POLICIES, SECRET, refused, shared, untouched, word, writable};
use revocable_mmio::ShareAccess;

const HUGE: usize = 2 << 20;
/// madvise(2), Linux 6.1.
const MADV_COLLAPSE: i32 = 25;

/// The kernel zeroes the part of a huge page that is cut off, and whoever holds it sees that.
fn nothing_is_lost_of(len: usize, access: ShareAccess) {
    support::start();
    for policy in POLICIES {
        let region = shared(len, policy);
        region.owner().fill(0, BEFORE, len).expect("it has memory");
        let window = region.share(access).expect("a descriptor can be had");
        let Some(mut peer) = Peer::without_mapping(window, len) else { return };
        assert_eq!(peer.ask("map-ro a 0"), "ok");
        let collapsed = peer.ask(&format!("advise a {MADV_COLLAPSE}"));
        require!(collapsed == "0", &format!("no huge pages of shared memory: {collapsed}"), could: false);
        region.disable().expect("it revokes");
        assert_eq!(peer.ask("load-all a"), refused(policy));
        let mut content = vec![0; len];
        region.owner().read_slice(0, &mut content).expect("it has memory");
        let lost = content.iter().filter(|byte| **byte != BEFORE).count();
        assert_eq!(lost, 0, "{policy:?}: bytes lost of {len:#x}");
        region.owner().fill(0, SECRET, len).expect("it has memory");
        region.enable().expect("it restores");
        untouched(&region);
        assert_eq!(peer.ask("load-all a"), format!("{:#x} everywhere", word(SECRET)));
    }
}

#[test]
fn nothing_is_lost_of_whole_huge_pages() {
    nothing_is_lost_of(2 * HUGE, ShareAccess::ReadWrite);
    nothing_is_lost_of(2 * HUGE, ShareAccess::ReadOnly);
}

/// The last part of the region is less than a huge page.
#[test]
fn nothing_is_lost_of_huge_pages_and_some_pages() {
    nothing_is_lost_of(HUGE + 16 * PAGE, ShareAccess::ReadOnly);
    nothing_is_lost_of(3 * HUGE - PAGE, ShareAccess::ReadOnly);
}

/// A huge page that reaches beyond the end of a region, which is less than one.
#[test]
fn nothing_is_lost_of_a_part_of_a_huge_page() {
    const LEN: usize = 16 * PAGE;
    support::start();
    for policy in POLICIES {
        let region = shared(LEN, policy);
        region.owner().fill(0, BEFORE, LEN).expect("it has memory");
        let window = region.share(ShareAccess::ReadOnly).expect("a descriptor can be had");
        let Some(mut peer) = Peer::without_mapping(window, HUGE) else { return };
        assert_eq!(peer.ask("map-ro a 0"), "ok");
        println!("collapsed: {}", peer.ask(&format!("advise a {MADV_COLLAPSE}")));
        region.disable().expect("it revokes");
        let mut content = vec![0; LEN];
        region.owner().read_slice(0, &mut content).expect("it has memory");
        assert_eq!(content, vec![BEFORE; LEN], "{policy:?}");
        region.enable().expect("it restores");
        assert_eq!(peer.ask(&format!("load a {:#x}", LEN - 8)), format!("{:#x}", word(BEFORE)));
    }
}

/// Again and again, while a peer stores to all pages and its neighbour collapses them.
#[test]
fn no_store_is_lost_while_a_peer_makes_huge_pages() {
    use crate::g2_hunt::{hunt, storer};
    use crate::log::{Head, Logged};
    support::start();
    for policy in POLICIES {
        let region = shared(2 * HUGE, policy);
        let Some(mut peer) = storer(&region, policy) else { return };
        let Some(collapser) = Logged::new("prober", writable(&region), 2 * HUGE, &["collapse", "0"]) else { return };
        peer.wait(Head::Passes, 2);
        hunt(&region, &mut peer, policy, 40).unwrap_or_else(|e| panic!("{policy:?}: {e}"));
        println!("{policy:?}: collapsed {} times", collapser.head(Head::Made));
    }
}
