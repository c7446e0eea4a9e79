//! Loads and stores beside toggles of both kinds: nothing leaks, and nothing is refused wrongly.
//!
//! Each toggler says in a counter where it is. An access between two equal looks at both counters was made while neither
//! changed: it must have been refused if either was off, and let through if both were on.

use crate::rig::{BAR, MEMORY, rig};
use crate::support::{AtTheEnd, addr, raw, stress_time};
use revocable_mmio::{AccessError, MapOptions, Mapping, OnDisabled};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Modulo 4: 0 on, 2 off, odd in between.
#[derive(Default)]
struct Phase(AtomicU64);

impl Phase {
    fn change(&self, change: impl FnOnce()) {
        self.0.fetch_add(1, Ordering::SeqCst);
        change();
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Default)]
struct Tally {
    let_through: AtomicU64,
    refused: AtomicU64,
    /// In a window, so that the verdict counts.
    judged: AtomicU64,
    /// Of the device, and of the region.
    toggles: [AtomicU64; 2],
}

impl Tally {
    /// True if enough was done to tell, with toggles by these.
    fn is_enough(&self, theirs: bool, ours: bool) -> bool {
        let more = |counter: &AtomicU64, than: u64| counter.load(Ordering::Relaxed) > than;
        let [device, own] = &self.toggles;
        let toggled = (!theirs || more(device, 20)) && (!ours || more(own, 20));
        toggled && more(&self.let_through, 100) && more(&self.refused, 20) && more(&self.judged, 100)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Stores and loads a counter at its own place until the end.
fn hand(mapping: &Mapping, at: usize, phases: &[&Phase], stop: &AtomicBool, tally: &Tally) {
    let look = || phases.iter().map(|phase| phase.now()).collect::<Vec<_>>();
    // The last value that certainly is there.
    let (mut value, mut stored) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let before = look();
        let done = mapping.write(at, value);
        let found = mapping.read::<u64>(at);
        // By address, where only the page tables refuse.
        let raw = raw::load(mapping.as_ptr().wrapping_add(at), 8);
        let after = look();
        let lets = |ok: bool| count(if ok { &tally.let_through } else { &tally.refused });
        lets(done.is_ok());
        lets(found.is_ok());
        lets(raw.is_ok());
        if let Err(hit) = raw {
            assert_eq!(hit, raw::Hit::bus(addr(mapping) + at));
        }
        for refused in [done.err(), found.err()].into_iter().flatten() {
            assert_eq!(refused, AccessError::Disabled { offset: at }, "the only reason to refuse");
        }
        match done {
            Ok(()) => stored = value,
            // Refused, and never made.
            Err(_) => value = stored,
        }
        if let Ok(found) = found {
            assert_eq!(found, stored, "a store that was refused is there, or one that was made is lost");
        }
        if before == after && before.iter().all(|phase| phase % 2 == 0) {
            let on = before.iter().all(|phase| phase % 4 == 0);
            count(&tally.judged);
            assert_eq!((done.is_ok(), found.is_ok(), raw.is_ok()), (on, on, on), "phases {before:?}");
        }
    }
}

/// Off and on again, until the end.
fn toggle(phase: &Phase, toggles: &AtomicU64, goes_on: impl Fn() -> bool, turn: impl Fn(bool)) {
    while goes_on() {
        phase.change(|| turn(false));
        thread::sleep(Duration::from_micros(300));
        phase.change(|| turn(true));
        thread::sleep(Duration::from_micros(700));
        count(toggles);
    }
}

#[test]
fn no_access_leaks_and_none_is_refused_wrongly() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    for (ours, theirs) in [(true, false), (false, true), (true, true)] {
        let (device, own) = (Phase::default(), Phase::default());
        let (tally, stop) = (Tally::default(), AtomicBool::new(false));
        let mappings: Vec<_> =
            (0..2).map(|_| region.map(MapOptions::new().on_disabled(OnDisabled::Sigbus)).expect("a mapping")).collect();
        thread::scope(|scope| {
            let _stop = AtTheEnd(&stop);
            let (device, own, tally, stop) = (&device, &own, &tally, &stop);
            for (i, mapping) in mappings.iter().enumerate() {
                let at = 0x10_0000 * i + 0x208;
                mapping.write(at, 0_u64).expect("it begins on");
                scope.spawn(move || {
                    let _stop = AtTheEnd(stop);
                    hand(mapping, at, &[device, own], stop, tally);
                });
            }
            // A busy machine does less in the same time.
            let (began, least, most) = (Instant::now(), stress_time(4000), Duration::from_secs(60));
            let opened = &opened;
            let [device_toggles, own_toggles] = &tally.toggles;
            let goes_on = move || {
                let (took, enough) = (began.elapsed(), tally.is_enough(theirs, ours));
                (took < least || took < most && !enough) && !stop.load(Ordering::Relaxed)
            };
            if theirs {
                scope.spawn(move || toggle(device, device_toggles, goes_on, |on| opened.turn(on)));
            }
            if ours {
                toggle(own, own_toggles, goes_on, |on| {
                    let changed = if on { region.enable() } else { region.disable() };
                    assert!(changed.expect("nothing is in the way"));
                });
            }
            while goes_on() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(tally.is_enough(theirs, ours), "too little was done to tell: {tally:?}");
        let [device, own] = tally.toggles.map(AtomicU64::into_inner);
        let [through, refused, judged] = [tally.let_through, tally.refused, tally.judged].map(AtomicU64::into_inner);
        println!(
            "the device toggled {device} times, the region {own} times: {through} accesses let through, {refused} refused, \
             {judged} rounds judged"
        );
        assert_eq!(region.stats().degraded, 0);
    }
}
