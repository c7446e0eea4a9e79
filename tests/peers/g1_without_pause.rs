//! G1 as a hunt: peers look for the owner's stamp, and store poison, each in one way without pause, while the region is
//! withdrawn and given back.

use crate::log::{Head, Logged};
use crate::support::{self, raw};
use crate::{PAGE, POLICIES, shared, writable};
use revocable_mmio::{OnDisabled, Region};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PAGES: usize = 16;
const STAMP: u64 = 0xdead_0000_dead_0000;
/// In the words that only peers store to.
const KEPT: u64 = 0x4b45_5054;
const WATCHED: usize = 16;

/// Withdraws the region, stamps it, and looks for poison, for `time` and at least three rounds.
fn rounds(region: &Region, time: Duration) -> u64 {
    let (since, mut rounds) = (Instant::now(), 0);
    let pages = || (0..region.len()).step_by(PAGE);
    while rounds < 3 || since.elapsed() < time {
        region.disable().expect("it revokes");
        for page in pages() {
            region.owner().write(page, STAMP).expect("it has memory");
            region.owner().write(page + WATCHED, KEPT).expect("it has memory");
        }
        thread::sleep(Duration::from_micros(rounds % 5 * 200));
        for page in pages() {
            assert_eq!(region.owner().read::<u64>(page + WATCHED), Ok(KEPT), "a store reached withdrawn content");
            region.owner().write(page, 0_u64).expect("it has memory");
        }
        region.enable().expect("it restores");
        thread::sleep(Duration::from_micros(rounds % 3 * 300));
        rounds += 1;
    }
    rounds
}

fn hunt(program: &str, way: &[&str], len: usize) {
    support::start();
    for policy in POLICIES {
        let region = shared(len, policy);
        let stamp = format!("{STAMP:#x}");
        let args: Vec<&str> = way.iter().copied().chain([stamp.as_str()]).collect();
        let Some(mut peer) = Logged::new(program, writable(&region), len, &args) else { return };
        peer.wait(Head::Passes, 1);
        let made = peer.head(Head::Made);
        rounds(&region, Duration::from_millis(150));
        // It has gone on, and was refused where it is to be.
        peer.wait(Head::Passes, 2);
        assert!(peer.head(Head::Made) > made, "{way:?}: it has seen nothing while enabled");
        peer.sound(&format!("{policy:?}, {way:?}"));
    }
}

#[test]
fn peers_that_load_and_store() {
    hunt("prober", &["load"], PAGES * PAGE);
    hunt("prober", &["store"], PAGES * PAGE);
}

#[test]
fn peers_in_read_and_write() {
    hunt("prober", &["write"], PAGES * PAGE);
    hunt("prober", &["read"], PAGES * PAGE);
    hunt("prober", &["direct"], PAGES * PAGE);
}

#[test]
fn peers_that_pin_pages_in_pipes() {
    hunt("prober", &["vmsplice"], PAGES * PAGE);
}

#[test]
fn peers_that_fork() {
    hunt("prober", &["fork"], PAGES * PAGE);
}

#[test]
fn peers_that_map_anew_and_move_mappings() {
    hunt("prober", &["map"], PAGES * PAGE);
}

#[test]
fn peers_that_lock_and_advise() {
    hunt("prober", &["advise"], PAGES * PAGE);
}

/// The vCPU is in KVM_RUN all the time, and its memslot stays.
#[test]
fn a_guest_with_a_memslot_over_the_mapping() {
    require!(
        std::path::Path::new("/dev/kvm").exists() && cfg!(target_arch = "x86_64"),
        "no /dev/kvm, or x86_64 only",
        could: false
    );
    require!(std::fs::File::options().write(true).open("/dev/kvm").is_ok(), "no right to /dev/kvm");
    hunt("guest", &[], PAGES * PAGE);
}

/// process_vm_readv(2) of a peer's mapping by a third process, at every moment of a change.
#[test]
fn the_mapping_of_a_peer_read_by_another_process() {
    support::start();
    for policy in POLICIES {
        let region = shared(PAGES * PAGE, policy);
        let way = ["idle", &format!("{STAMP:#x}")];
        let Some(peer) = Logged::new("prober", writable(&region), region.len(), &way) else { return };
        let at = usize::try_from(peer.head(Head::At)).expect("an address");
        let end = AtomicBool::new(false);
        let (whole, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            let (end, whole, refused, peer) = (&end, &whole, &refused, &peer);
            let reader = scope.spawn(move || {
                let mut copy = vec![0; PAGES * PAGE];
                while !end.load(Ordering::Relaxed) || whole.load(Ordering::Relaxed) == 0 {
                    let got = raw::read_process(peer.pid(), at, &mut copy);
                    let counter = if got == Ok(copy.len()) { whole } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                    let stamped =
                        copy[..got.unwrap_or(0)].chunks_exact(PAGE).any(|page| page[..8] == STAMP.to_ne_bytes());
                    assert!(!stamped, "{policy:?}: the stamp was read");
                }
            });
            rounds(&region, Duration::from_millis(300));
            end.store(true, Ordering::Relaxed);
            reader.join().expect("no stamp");
        });
        let refused = refused.load(Ordering::Relaxed);
        assert!(policy == OnDisabled::AllOnes || refused > 0, "no read met a disabled region");
    }
}
