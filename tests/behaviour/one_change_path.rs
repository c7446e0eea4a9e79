//! A region, a group and a device change in one way: with the same verbs, statistics and notifications.

use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, PciDevice, Space};
use revocable_mmio::{
    GroupError, InvalidateNotifier, MapOptions, NotifyError, Region, ResetGroup, RevokeError, Strategy,
};
use std::ops::Range;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
const A_MOMENT: Duration = Duration::from_millis(30);

fn region() -> Region {
    Region::builder(LEN).build().expect("a region")
}

/// The notifications of a region, in order: `-` for revoked, `+` for restored.
#[derive(Default)]
struct Told(Mutex<String>);

impl Told {
    fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().expect("a log"))
    }
}

impl InvalidateNotifier for Told {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.lock().expect("a log").push('-');
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.lock().expect("a log").push('+');
        Ok(())
    }
}

#[test]
fn a_group_that_is_what_it_is_to_become_does_nothing_and_says_so() {
    type Verb = fn(&ResetGroup) -> Result<bool, GroupError>;
    let disable: [Verb; 3] =
        [ResetGroup::disable, ResetGroup::try_disable, |group| group.disable_timeout(Duration::from_secs(20))];
    let enable: [Verb; 3] =
        [ResetGroup::enable, ResetGroup::try_enable, |group| group.enable_timeout(Duration::from_secs(20))];
    for (disable, enable) in disable.into_iter().zip(enable) {
        let regions = [region(), region()];
        let told = regions.each_ref().map(|_| Arc::new(Told::default()));
        let _subscribed: Vec<_> =
            regions.iter().zip(&told).map(|(region, told)| region.subscribe(0..LEN, Arc::clone(told) as _)).collect();
        let group = ResetGroup::new(&regions);
        assert!(!enable(&group).expect("enabled already"));
        assert_eq!(told.each_ref().map(|told| told.take()), ["", ""]);
        assert!(disable(&group).expect("nothing is in the way"));
        assert_eq!(told.each_ref().map(|told| told.take()), ["-", "-"]);
        assert!(!disable(&group).expect("disabled already"));
        assert_eq!(told.each_ref().map(|told| told.take()), ["", ""]);
        // One of them changes, and the other is left alone.
        regions[0].enable().expect("it comes back");
        assert_eq!(told.each_ref().map(|told| told.take()), ["+", ""]);
        assert!(enable(&group).expect("nothing is in the way"));
        assert_eq!(told.each_ref().map(|told| told.take()), ["", "+"]);
        for region in &regions {
            let stats = region.stats();
            assert_eq!((stats.disables, stats.enables), (1, 1), "only changes are counted");
        }
    }
}

#[test]
fn a_group_of_no_members_has_nothing_to_do() {
    let group = ResetGroup::new([]);
    assert!(!group.disable().expect("nothing is in the way") && !group.enable().expect("nothing is in the way"));
    assert_eq!(group.reset(|views| views.len()).expect("nothing is in the way"), 0);
}

#[test]
fn every_change_is_counted_and_timed_whoever_made_it() {
    let bar = Space::Bar(0);
    let builder = PciDevice::builder(0x1234, 0x11e8).bar(0, Bar::memory(LEN as u64));
    let device = builder.build().expect("a device");
    let (alone, member, last) = (region(), region(), region());
    let group = ResetGroup::new([&member, &last]);
    alone.disable().expect("nothing is in the way");
    alone.enable().expect("nothing is in the way");
    alone.reset(|_| ()).expect("nothing is in the way");
    group.disable().expect("nothing is in the way");
    group.enable().expect("nothing is in the way");
    group.reset(|_| ()).expect("nothing is in the way");
    for command in [2_u16, 0, 2] {
        device.write(Space::Config, 4, &command.to_le_bytes()[..]).expect("a command register");
    }
    let regions = [("a region", &alone), ("a member", &member), ("the other", &last)];
    let of_device = ("a BAR", device.region(bar).expect("a BAR"));
    for (what, region) in regions.into_iter().chain([of_device]) {
        let stats = region.stats();
        let (disables, enables) = if what == "a BAR" { (1, 2) } else { (1, 1) };
        assert_eq!((stats.disables, stats.enables), (disables, enables), "{what}");
        assert_eq!((stats.disable.count(), stats.enable.count()), (disables, enables), "{what}: its latency");
        assert_eq!(stats.resets, u64::from(what != "a BAR"), "{what}");
    }
}

#[test]
fn page_tables_are_trimmed_after_a_groups_change_too() {
    let build = || Region::builder(LEN).strategy(Strategy::Detach).trim_detached().build().expect("Detach is there");
    let regions = [build(), build()];
    let _maps = regions.each_ref().map(|region| {
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.fill(0, 1, LEN).expect("enabled");
        mapping
    });
    let threads = || std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let trims = || {
        threads().any(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim() == "mmio-trim"
        })
    };
    let group = ResetGroup::new(&regions);
    // The thread that trims is short-lived: some round sees it.
    let seen = (0..200).any(|_| {
        group.disable().expect("nothing is in the way");
        let seen = trims();
        group.enable().expect("nothing is in the way");
        seen
    });
    assert!(seen, "nothing was trimmed");
}

#[test]
fn a_group_waits_for_a_pin_gives_up_in_time_or_never_begins_to_wait() {
    let regions = [region(), region()];
    let told = regions.each_ref().map(|_| Arc::new(Told::default()));
    let _subscribed: Vec<_> =
        regions.iter().zip(&told).map(|(region, told)| region.subscribe(0..LEN, Arc::clone(told) as _)).collect();
    let group = ResetGroup::new(&regions);
    for pinned in 0..2 {
        let pin = regions[pinned].pin(0..4096, FaultFlags::NOWAIT).expect("enabled");
        let refused = group.try_disable().expect_err("pinned");
        assert!(matches!(refused.source, RevokeError::Busy(_)), "{refused}");
        assert_eq!(told.each_ref().map(|told| told.take()), ["", ""], "a refused try tells no notifier");
        let since = Instant::now();
        let refused = group.disable_timeout(A_MOMENT).expect_err("pinned");
        assert!(matches!(refused.source, RevokeError::TimedOut { .. }) && since.elapsed() >= A_MOMENT, "{refused}");
        let refused = group.reset_timeout(A_MOMENT, |_| panic!("pinned")).expect_err("pinned");
        assert!(matches!(refused.source, RevokeError::TimedOut { .. }), "{refused}");
        assert!(regions.iter().all(Region::is_enabled), "all or nothing");
        for told in told.each_ref().map(|told| told.take()) {
            assert!(["", "-+", "-+-+"].contains(&told.as_str()), "each announcement was taken back: {told}");
        }
        thread::scope(|scope| {
            let waits = scope.spawn(|| group.disable());
            thread::sleep(A_MOMENT);
            assert!(!waits.is_finished());
            drop(pin);
            assert!(waits.join().expect("no panic").expect("nothing is in the way any more"));
        });
        assert_eq!(told.each_ref().map(|told| told.take()), ["-", "-"], "a change that waits announces once");
        group.enable().expect("nothing is in the way");
        assert_eq!(told.each_ref().map(|told| told.take()), ["+", "+"]);
    }
}

#[test]
fn groups_that_overlap_and_wait_for_each_other_end() {
    let regions: Vec<_> = (0..4).map(|_| region()).collect();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for part in [[0, 1, 2], [2, 3, 0], [3, 1, 2]] {
            let group = ResetGroup::new(part.map(|at| &regions[at]));
            let tell = tell.clone();
            scope.spawn(move || {
                for _ in 0..300 {
                    group.disable().expect("waits");
                    group.reset(|_| ()).expect("waits");
                    group.enable().expect("waits");
                }
                tell.send(()).expect("it is heard");
            });
        }
        for _ in 0..3 {
            told.recv_timeout(Duration::from_secs(60)).expect("no deadlock");
        }
    });
}

#[test]
fn a_regions_trio_is_whole() {
    let region = region();
    let pin = region.pin(0..4096, FaultFlags::NOWAIT).expect("enabled");
    assert!(matches!(region.try_reset(|_| ()), Err(RevokeError::Busy(_))));
    assert!(matches!(region.reset_timeout(A_MOMENT, |_| ()), Err(RevokeError::TimedOut { .. })));
    drop(pin);
    assert_eq!(region.reset_timeout(A_MOMENT, |view| view.len()).expect("nothing is in the way"), LEN);
    assert!(!region.enable_timeout(A_MOMENT).expect("enabled already"));
    thread::scope(|scope| {
        let ((tell, begun), (end, ends)) = (mpsc::channel(), mpsc::channel::<()>());
        let busy = &region;
        scope.spawn(move || {
            busy.reset(|_| {
                tell.send(()).expect("it is heard");
                let _ = ends.recv();
            })
        });
        begun.recv().expect("the reset");
        assert!(matches!(region.enable_timeout(A_MOMENT), Err(RevokeError::TimedOut { .. })));
        drop(end);
    });
}
