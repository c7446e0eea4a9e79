//! What it costs beside a mapping of the BAR by hand. Processors are emulated: only ratios mean something, and only faults
//! are judged exactly. The ratio of toggles is that of unoptimised code, unless the machine's tests are built with `--release`:
//! see tools/vm/README.md.
#![expect(unsafe_code, reason = "a mapping of the BAR by hand, and raw loads of it")]

use crate::rig::{BAR, LEN, MEMORY, faults, rig};
use memmap2::{MmapOptions, MmapRaw};
use revocable_mmio::vfio::RegionInfo;
use revocable_mmio::{MapOptions, Region, Strategy};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 9;

/// The middle one of several times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ratio(what: &str, ours: Vec<Duration>, plain: Vec<Duration>) {
    let (ours, plain) = (median(ours), median(plain));
    let ratio = ours.as_secs_f64() / plain.as_secs_f64();
    println!("{what}: {ours:?} beside {plain:?}, ratio {ratio:.2}");
}

fn timed(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}

#[test]
fn it_costs_what_a_mapping_by_hand_costs() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    let offset = RegionInfo::ask(opened.device.as_fd(), BAR).expect("it has one").offset();
    let by_hand = || -> MmapRaw {
        let options = MmapOptions::new().offset(offset).len(LEN).map_raw(&opened.device.as_fd());
        options.expect("the BAR can be mapped")
    };
    let touch = |base: *mut u8| {
        for at in (0..LEN).step_by(4096) {
            // SAFETY: inside a mapping of `LEN` bytes of the BAR, which is on; nothing else writes there.
            unsafe { base.wrapping_add(at).read_volatile() };
        }
    };

    // SAFETY: as above.
    let touch_one = |base: *mut u8| unsafe { base.read_volatile() };

    // The first touch of 16 MiB: by whichever entries the kernel makes.
    let mut faults_taken = 0;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        region.disable().expect("disable");
        region.enable().expect("enable");
        let before = faults();
        ours.push(timed(|| touch(mapping.as_ptr())));
        let taken = faults() - before;
        let map = by_hand();
        let before = faults();
        plain.push(timed(|| touch(map.as_mut_ptr())));
        assert_eq!(taken, faults() - before, "faults for 16 MiB");
        faults_taken = taken;
    }
    println!("faults for 16 MiB: {faults_taken}, as many as by hand");
    ratio("touching 16 MiB after enable()", ours, plain);

    // A toggle beside munmap and mmap, with a page touched in between.
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        const TOGGLES: u32 = 100;
        ours.push(timed(|| {
            for _ in 0..TOGGLES {
                region.disable().expect("disable");
                region.enable().expect("enable");
                touch_one(mapping.as_ptr());
            }
        }));
        plain.push(timed(|| {
            for _ in 0..TOGGLES {
                let map = by_hand();
                touch_one(map.as_mut_ptr());
            }
        }));
    }
    ratio("100 toggles beside 100 times munmap and mmap", ours, plain);

    // The same of a region of plain memory: what is the strategy's, and not the BAR's.
    let memory = Region::builder(LEN).strategy(Strategy::Replace).build().expect("16 MiB");
    let of_memory = memory.map(MapOptions::new()).expect("a mapping");
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (times, region, mapping) in [(&mut ours, region, &mapping), (&mut plain, &memory, &of_memory)] {
            times.push(timed(|| {
                for _ in 0..10 {
                    region.disable().expect("disable");
                    region.enable().expect("enable");
                    touch_one(mapping.as_ptr());
                }
            }));
        }
    }
    ratio("10 toggles beside those of a memfd's region", ours, plain);

    // An accessor's load beside a raw one.
    let map = by_hand();
    touch(map.as_mut_ptr());
    touch(mapping.as_ptr());
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        const LOADS: usize = 200_000;
        ours.push(timed(|| {
            for i in 0..LOADS {
                std::hint::black_box(mapping.read::<u32>(i % 1024 * 4).expect("on"));
            }
        }));
        plain.push(timed(|| {
            for i in 0..LOADS {
                let at = map.as_mut_ptr().wrapping_add(i % 1024 * 4).cast::<u32>();
                // SAFETY: inside the mapping, which is on; nothing else writes there.
                std::hint::black_box(unsafe { at.read_volatile() });
            }
        }));
    }
    ratio("200,000 loads by an accessor beside raw ones", ours, plain);
}
