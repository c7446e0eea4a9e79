//! G2 as a hunt: a peer stores increasing numbers to every page without pause, and logs each store that has returned. No
//! such store may be missing from the content.

use crate::log::{Head, Logged};
use crate::support::{self, raw};
use crate::{PAGE, POLICIES, shared, writable};
use revocable_mmio::{Feature, MapOptions, Mapping, OnDisabled, Region, Support};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// The word that only the owner stores to.
const MARK: usize = 8;

/// Runs the hunt. The error is the violation that it found.
pub(crate) fn hunt(region: &Region, peer: &mut Logged, policy: OnDisabled, rounds: u64) -> Result<(), String> {
    let pages = region.len() / PAGE;
    let exact = policy != OnDisabled::AllOnes;
    let content = |offset: usize| -> Vec<u64> {
        (0..pages).map(|page| region.owner().read(page * PAGE + offset).expect("it has memory")).collect()
    };
    // With ones, stores return while disabled and go nowhere. One that was under way at `enable()` may be logged after it.
    let mut nowhere = vec![0; pages];
    for round in 1..=rounds {
        let returned = peer.page_words(0, pages);
        region.disable().map_err(|e| e.to_string())?;
        let kept = content(0);
        // From time to time until it is known that the peer was refused, so that all it has stored is logged.
        let settle = round % 8 == 0;
        if settle && exact {
            refused(peer).map_err(|e| format!("round {round}: {e}"))?;
        }
        let logged = peer.page_words(0, pages);
        for page in 0..pages {
            let (returned, kept, logged) = (returned[page], kept[page], logged[page]);
            let what = format!("round {round}, page {page}: {kept} kept");
            if kept < returned && (exact || returned > nowhere[page] + 1) {
                return Err(format!("{what}, {returned} had returned before disable()"));
            }
            if exact && kept < logged {
                return Err(format!("{what}, {logged} has returned"));
            }
            if kept > logged + 1 || settle && exact && kept != logged {
                return Err(format!("{what}, which was not stored while enabled: {logged}"));
            }
        }
        for page in 0..pages {
            region.owner().write(page * PAGE + MARK, round).map_err(|e| e.to_string())?;
        }
        if content(0) != kept {
            return Err(format!("round {round}: the content has changed while withdrawn"));
        }
        region.enable().map_err(|e| e.to_string())?;
        if !exact {
            nowhere = peer.page_words(0, pages);
        }
        if settle {
            // A pass that has begun after that has seen every mark.
            peer.wait(Head::Passes, 2);
            if peer.page_words(pages, pages).iter().any(|mark| *mark != round) {
                return Err(format!("round {round}: the owner's stores were not seen after enable()"));
            }
        }
        peer.verdict()?;
    }
    Ok(())
}

/// Waits until two accesses have been refused: one may have begun before the region was disabled.
fn refused(peer: &mut Logged) -> Result<(), String> {
    let before = [Head::Refused, Head::Passes].map(|word| peer.head(word));
    while peer.head(Head::Refused) < before[0] + 2 {
        if peer.head(Head::Passes) > before[1] + 3 && peer.head(Head::Refused) < before[0] + 2 {
            return Err("whole passes through all pages were not refused".to_owned());
        }
        peer.lives();
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    Ok(())
}

pub(crate) fn storer(region: &Region, policy: OnDisabled) -> Option<Logged> {
    let way = if policy == OnDisabled::AllOnes { "ones" } else { "exact" };
    Logged::new("storer", writable(region), region.len(), &[way])
}

fn no_store_is_lost(pages: usize, rounds: u64) {
    support::start();
    for policy in POLICIES {
        let region = shared(pages * PAGE, policy);
        let Some(mut peer) = storer(&region, policy) else { return };
        peer.wait(Head::Passes, 2);
        hunt(&region, &mut peer, policy, rounds).unwrap_or_else(|e| panic!("{policy:?}, {pages} pages: {e}"));
        assert!(peer.head(Head::Made) > rounds, "it has hardly stored");
        assert_eq!(region.stats().lost, 0);
    }
}

#[test]
fn no_store_is_lost_of_one_page() {
    no_store_is_lost(1, 300);
}

#[test]
fn no_store_is_lost_of_16_pages() {
    no_store_is_lost(16, 200);
}

/// Less than the pipe holds, and no power of two.
#[test]
fn no_store_is_lost_of_200_pages() {
    no_store_is_lost(200, 100);
}

/// In several parts.
#[test]
fn no_store_is_lost_of_1024_pages() {
    no_store_is_lost(1024, 60);
}

/// The owner's view by its accessors and by its pointer, and own mappings of every policy, in threads of their own.
#[test]
fn no_store_is_lost_beside_the_owners_view_and_own_mappings() {
    const PAGES: usize = 64;
    const OWN: usize = 1024;
    support::start();
    let can_wait = Support::current().userfaultfd() && Support::current().has(Feature::UFFD_EVENT_REMAP);
    for policy in POLICIES {
        let region = shared(PAGES * PAGE, policy);
        let Some(mut peer) = storer(&region, policy) else { return };
        let policies: &[OnDisabled] = if can_wait { &support::matrix::POLICIES } else { &POLICIES };
        let mappings: Vec<(OnDisabled, Mapping)> = policies
            .iter()
            .map(|own| (*own, region.map(MapOptions::new().on_disabled(*own)).expect("it maps")))
            .collect();
        let at = region.owner().as_ptr().expose_provenance();
        let end = AtomicBool::new(false);
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            let (end, done, region) = (&end, &done, &region);
            // Each thread has a word of its own in every page, and finds in it what it has stored.
            scope.spawn(move || {
                for n in (0_u64..).take_while(|_| !end.load(Ordering::Relaxed)) {
                    let word = usize::try_from(n).expect("few") % PAGES * PAGE + OWN;
                    region.owner().write(word, n).expect("the owner's view never fails");
                    assert_eq!(region.owner().read::<u64>(word), Ok(n));
                    // By the pointer: a userfaultfd lets it wait, and without one it is refused during a move.
                    if can_wait {
                        raw::store64(at + word + 8, n).expect("the owner's pointer waits");
                        assert_eq!(raw::load64(at + word + 8), Ok(n));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            for (index, (own, mapping)) in mappings.iter().enumerate() {
                scope.spawn(move || {
                    for n in (1_u64..).take_while(|_| !end.load(Ordering::Relaxed)) {
                        let word = usize::try_from(n).expect("few") % PAGES * PAGE + OWN + 64 * (index + 1);
                        let stored = mapping.write(word, n);
                        let loaded = mapping.read::<u64>(word);
                        match own {
                            OnDisabled::Block => assert_eq!((stored, loaded), (Ok(()), Ok(n)), "it waits"),
                            OnDisabled::AllOnes => assert!(loaded.is_ok(), "{loaded:?}"),
                            _ => assert!(
                                stored.is_err() || loaded.is_err() || loaded == Ok(n),
                                "{loaded:?} instead of {n}"
                            ),
                        }
                    }
                });
            }
            let hunted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                hunt(region, &mut peer, policy, 60).unwrap_or_else(|e| panic!("{policy:?}: {e}"));
                // While busy, peers meet the window's policy.
                for round in 0..20 {
                    region
                        .reset(|_| {
                            if round % 4 == 0 && policy == OnDisabled::Sigbus {
                                peer.wait(Head::Refused, 2);
                            }
                        })
                        .expect("it resets");
                }
                peer.verdict().unwrap_or_else(|e| panic!("{policy:?}, resets: {e}"));
            }));
            end.store(true, Ordering::Relaxed);
            let _ = region.enable();
            hunted.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        assert!(done.load(Ordering::Relaxed) > 0, "the owner's view was not used");
    }
}

/// By accessors alone: the pointer has not been given out.
#[test]
fn the_owners_accessors_wait_for_a_move() {
    const LEN: usize = 256 * PAGE;
    support::start();
    for policy in POLICIES {
        let region = shared(LEN, policy);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let (end, region) = (&end, &region);
            scope.spawn(move || {
                let mut copy = vec![0; 8 * PAGE];
                for n in (0_u64..).take_while(|_| !end.load(Ordering::Relaxed)) {
                    let at = usize::try_from(n).expect("few") % 240 * PAGE;
                    region.owner().write(at, n).expect("it waits");
                    assert_eq!(region.owner().read::<u64>(at), Ok(n));
                    region.owner().read_slice(at, &mut copy).expect("it waits");
                    region.owner().write_slice(at, &copy).expect("it waits");
                }
            });
            for _ in 0..100 {
                let toggled = region.disable().and_then(|_| region.enable());
                // Before a panic, too: the scope waits for the thread.
                end.fetch_or(toggled.is_err(), Ordering::Relaxed);
                toggled.expect("nothing is in the way");
            }
            end.store(true, Ordering::Relaxed);
        });
    }
}
