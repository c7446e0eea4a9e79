//! Notifiers are told of a revocation in a fixed order, and the regions of a group are revoked together or not at all.

use crate::support;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{InvalidateNotifier, MapOptions, NotifyError, Region, ResetGroup, RevokeError};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const LEN: usize = 1 << 20;

fn region() -> Region {
    Region::builder(LEN).build().expect("a region")
}

type Told = Box<dyn Fn(bool, Range<usize>) -> Result<(), NotifyError> + Send + Sync>;

struct Calls(Told);

impl InvalidateNotifier for Calls {
    fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError> {
        (self.0)(true, range)
    }

    fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError> {
        (self.0)(false, range)
    }
}

fn notifier(told: impl Fn(bool, Range<usize>) -> Result<(), NotifyError> + Send + Sync + 'static) -> Arc<Calls> {
    Arc::new(Calls(Box::new(told)))
}

type Log = Arc<Mutex<Vec<String>>>;

fn logging(log: &Log, name: &'static str) -> Arc<Calls> {
    let log = Arc::clone(log);
    notifier(move |revoke, range| {
        log.lock().expect("the log").push(format!("{}{name} {range:x?}", if revoke { '-' } else { '+' }));
        Ok(())
    })
}

#[test]
fn notifiers_are_told_in_order_before_and_in_reverse_after_each_of_its_own_range() {
    support::start();
    let (region, log) = (region(), Log::default());
    let _a = region.subscribe(0..LEN, logging(&log, "a"));
    let _b = region.subscribe(4096..8192, logging(&log, "b"));
    let _beyond = region.subscribe(LEN - 1..LEN + 1, logging(&log, "c"));
    region.disable().expect("disabled");
    region.disable().expect("disabled before");
    region.enable().expect("enabled");
    let expected =
        ["-a 0..100000", "-b 1000..2000", "-c fffff..100000", "+c fffff..100000", "+b 1000..2000", "+a 0..100000"];
    assert_eq!(*log.lock().expect("the log"), expected);
}

#[test]
fn memory_is_reachable_when_a_notifier_is_told_on_both_ways() {
    support::start();
    let region = region();
    let mapping = Arc::new(region.map(MapOptions::new()).expect("a mapping"));
    let (inside, reads) = (Arc::clone(&mapping), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&reads);
    let _subscription = region.subscribe(
        0..LEN,
        notifier(move |_, _| {
            inside.read::<u32>(0)?;
            counted.fetch_add(1, SeqCst);
            Ok(())
        }),
    );
    region.disable().expect("disabled");
    assert!(mapping.read::<u32>(0).is_err());
    region.enable().expect("enabled");
    assert_eq!(reads.load(SeqCst), 2);
    assert_eq!(region.stats().notifier_errors, 0);
}

#[test]
fn a_failing_and_a_panicking_notifier_are_counted_and_stop_nothing() {
    support::start();
    let (region, log) = (region(), Log::default());
    let _fails = region.subscribe(0..LEN, notifier(|_, _| Err("no".into())));
    let _panics = region.subscribe(0..LEN, notifier(|_, _| panic!("by design")));
    let _told = region.subscribe(0..LEN, logging(&log, "last"));
    assert!(region.disable().expect("disabled"));
    assert!(region.enable().expect("enabled"));
    let stats = region.stats();
    assert_eq!((stats.notifier_errors, stats.notifier_panics), (2, 2));
    assert_eq!(log.lock().expect("the log").len(), 2);
}

#[test]
fn a_change_of_state_from_inside_a_notifier_is_an_error_and_not_a_deadlock() {
    support::start();
    let region = Arc::new(region());
    let (inside, refused) = (Arc::downgrade(&region), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&refused);
    let _subscription = region.subscribe(
        0..LEN,
        notifier(move |_, _| {
            let Some(region) = inside.upgrade() else { return Ok(()) };
            let group = ResetGroup::new([&*region]);
            let all = [
                region.disable().err(),
                region.enable().err(),
                region.try_disable().err(),
                region.reset(|_| ()).err(),
                group.try_reset(|_| ()).err().map(|e| e.source),
            ];
            let reentrant = all.iter().filter(|e| matches!(e, Some(RevokeError::Reentrant))).count();
            counted.fetch_add(u32::try_from(reentrant)?, SeqCst);
            Ok(())
        }),
    );
    region.disable().expect("disabled");
    region.enable().expect("enabled");
    assert_eq!(refused.load(SeqCst), 10);
}

#[test]
fn a_revocation_that_gives_up_takes_its_announcement_back() {
    support::start();
    let (region, log) = (region(), Log::default());
    let _subscription = region.subscribe(0..LEN, logging(&log, "a"));
    let pin = region.pin(0..1, FaultFlags::NOWAIT).expect("enabled");
    let gave_up = region.disable_timeout(Duration::from_millis(5));
    assert!(matches!(gave_up, Err(RevokeError::TimedOut { .. })));
    assert_eq!(*log.lock().expect("the log"), ["-a 0..100000", "+a 0..100000"]);
    drop(pin);
}

#[test]
fn who_subscribes_while_disabled_hears_of_the_restoration_first() {
    support::start();
    let (region, log) = (region(), Log::default());
    region.disable().expect("disabled");
    let subscription = region.subscribe(0..LEN, logging(&log, "a"));
    assert!(subscription.is_revoked());
    region.enable().expect("enabled");
    assert!(!subscription.is_revoked());
    assert_eq!(*log.lock().expect("the log"), ["+a 0..100000"]);
    let late = Region::builder(LEN).disabled().build().expect("a region");
    assert!(late.subscribe(0..LEN, logging(&log, "b")).is_revoked());
}

#[test]
fn nothing_is_heard_once_unsubscribing_has_returned_not_even_a_call_that_was_under_way() {
    support::start();
    let region = region();
    let (busy, ended) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (entering, leaving) = (Arc::clone(&busy), Arc::clone(&ended));
    let subscription = region.subscribe(
        0..LEN,
        notifier(move |_, _| {
            entering.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(30));
            leaving.fetch_add(1, SeqCst);
            Ok(())
        }),
    );
    thread::scope(|scope| {
        scope.spawn(|| region.disable().expect("disabled"));
        while busy.load(SeqCst) == 0 {
            thread::yield_now();
        }
        drop(subscription);
        assert_eq!(ended.load(SeqCst), 1, "waited for the call");
    });
    region.enable().expect("enabled");
    assert_eq!(busy.load(SeqCst), 1);
}

#[test]
fn a_dropped_region_tells_its_notifiers_even_without_mappings() {
    support::start();
    let (region, log) = (region(), Log::default());
    let subscription = region.subscribe(0..LEN, logging(&log, "a"));
    drop(region);
    assert_eq!(*log.lock().expect("the log"), ["-a 0..100000"]);
    drop(subscription);
}

#[test]
fn a_group_is_revoked_and_given_back_as_one() {
    support::start();
    let regions = [region(), region(), region()];
    let maps: Vec<_> = regions.iter().map(|r| r.map(MapOptions::new()).expect("a mapping")).collect();
    let group = ResetGroup::new(regions.iter().chain([&regions[0]]));
    assert_eq!(group.len(), 3, "each once");
    group.try_disable().expect("no member is busy");
    assert!(maps.iter().all(|map| map.read::<u8>(0).is_err()) && regions.iter().all(|r| !r.is_enabled()));
    group.try_enable().expect("no member is busy");
    assert!(maps.iter().all(|map| map.read::<u8>(0).is_ok()) && regions.iter().all(Region::is_enabled));
}

#[test]
fn a_busy_member_leaves_every_member_of_the_group_as_it_was() {
    support::start();
    let regions = [region(), region(), region()];
    let maps: Vec<_> = regions.iter().map(|r| r.map(MapOptions::new()).expect("a mapping")).collect();
    let group = ResetGroup::new(&regions);
    for busy in &regions {
        let pin = busy.pin(0..1, FaultFlags::NOWAIT).expect("enabled");
        let refused = group.try_disable().expect_err("pinned");
        assert!(refused.is_busy(), "{refused}");
        assert!(group.try_reset(|_| panic!("pinned")).expect_err("pinned").is_busy());
        assert!(maps.iter().all(|map| map.read::<u8>(0).is_ok()));
        drop(pin);
    }
    regions[1].disable().expect("disabled");
    let seen = group.try_reset(|views| views.len()).expect("no member is busy");
    assert_eq!(seen, 3);
    let reachable: Vec<_> = maps.iter().map(|map| map.read::<u8>(0).is_ok()).collect();
    assert_eq!(reachable, [true, false, true], "a disabled member stays disabled");
}

#[test]
fn a_group_with_a_dropped_region_fails_and_touches_nobody() {
    support::start();
    let (alive, dropped) = (region(), region());
    let group = ResetGroup::new([&alive, &dropped]);
    drop(dropped);
    let refused = group.try_disable().expect_err("one is gone");
    assert!(matches!(refused.source, RevokeError::Gone) && !refused.is_busy());
    assert!(alive.is_enabled());
}

/// A notifier that is told that the memory is back may wait for an access to another member.
#[test]
fn every_member_is_back_when_the_first_notifier_is_told() {
    support::start();
    // Each way round, because members end in an order of their own.
    for told in [0, 1] {
        let regions = [region(), region()];
        let mapping = regions[1 - told].map(MapOptions::new()).expect("a mapping");
        mapping.write(0, 7_u64).expect("enabled");
        let (tell, read) = mpsc::channel();
        let (read, seen) = (Mutex::new(read), Arc::new(Mutex::new(None)));
        let sees = Arc::clone(&seen);
        let _subscription = regions[told].subscribe(
            0..LEN,
            notifier(move |revoke, _| {
                if !revoke {
                    let read = read.lock().expect("the channel").recv_timeout(Duration::from_secs(20));
                    *sees.lock().expect("what was seen") = Some(read);
                }
                Ok(())
            }),
        );
        let group = ResetGroup::new(&regions);
        thread::scope(|scope| {
            let (mapping, tell) = (&mapping, &tell);
            group
                .try_reset(|_| {
                    scope.spawn(move || tell.send(mapping.read::<u64>(0)));
                    thread::sleep(Duration::from_millis(50));
                })
                .expect("nothing is in the way");
        });
        assert_eq!(*seen.lock().expect("what was seen"), Some(Ok(Ok(7))), "{told}");
    }
}
