//! Size probes, in every pattern that guests were seen to make, move nothing: with memory on or off, one half of a register
//! or both, in any order, by any width.

use super::*;

/// The values that guests probe with: Linux and most; OpenBSD, which leaves out the flags; for a ROM, with its bit off.
const MEMORY: &[u32] = &[0xffff_ffff, 0xffff_fff0, 0xffff_fff4];
const IO: &[u32] = &[0xffff_ffff, 0xffff_fffc, 0xffff_fffd];
const ROMS: &[u32] = &[0xffff_ffff, 0xffff_fffe, 0xffff_f800];

/// One write of a probe's sequence.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ones(u64),
    /// The register's old value.
    Back(u64),
}

use Step::{Back, Ones};

/// Orders in which the two halves of a register are probed and restored.
const WIDE: [&[Step]; 6] = [
    &[Ones(0), Back(0), Ones(4), Back(4)],
    &[Ones(4), Back(4), Ones(0), Back(0)],
    &[Ones(0), Ones(4), Back(0), Back(4)],
    &[Ones(0), Ones(4), Back(4), Back(0)],
    &[Ones(4), Ones(0), Back(0), Back(4)],
    &[Ones(4), Ones(0), Back(4), Back(0)],
];
const NARROW: [&[Step]; 1] = [&[Ones(0), Back(0)]];

fn put(device: &PciDevice, at: u64, value: u32, width: usize) {
    for (at, bytes) in (at..).step_by(width).zip(value.to_le_bytes().chunks(width)) {
        device.write(Space::Config, at, bytes).expect("a register");
    }
}

fn place_all(device: &PciDevice) {
    write(device, BAR0, 0xe000_0000);
    write(device, BAR2, 0xe000_0000);
    write(device, BAR2 + 4, 1);
    write(device, BAR4, 0xc000);
    write(device, ROM, 0xfe00_0001);
}

fn probe_all(device: &PciDevice, between: impl Fn(&str)) {
    type Probed<'a> = (u64, &'a [&'a [Step]], &'a [u32]);
    let registers: [Probed<'_>; 4] =
        [(BAR0, &NARROW, MEMORY), (BAR2, &WIDE, MEMORY), (BAR4, &NARROW, IO), (ROM, &NARROW, ROMS)];
    for (register, orders, probes) in registers {
        for (order, ones) in orders.iter().flat_map(|order| probes.iter().map(move |ones| (order, *ones))) {
            for width in [4, 2, 1] {
                let old = [0, 4].map(|half| dword(device, register + half));
                for step in *order {
                    match *step {
                        Ones(half) => put(device, register + half, if half == 4 { u32::MAX } else { ones }, width),
                        Back(half) => put(device, register + half, old[usize::from(half == 4)], width),
                    }
                    between(&format!("{register:#x} {step:?} of {order:?} with {ones:#x} by {width}"));
                }
            }
        }
    }
}

#[test]
fn a_size_probe_moves_nothing_while_memory_is_on() {
    let (device, guest, _following) = device();
    place_all(&device);
    command(&device, 3);
    assert_eq!(guest.told().len(), 4);
    probe_all(&device, |step| assert_eq!(guest.told(), [""; 0], "{step}"));
}

#[test]
fn a_size_probe_moves_nothing_while_memory_is_off_and_leaves_everything_where_it_was() {
    let (device, guest, _following) = device();
    place_all(&device);
    probe_all(&device, |step| assert_eq!(guest.told(), [""; 0], "{step}"));
    command(&device, 3);
    assert_eq!(guest.told(), ["+Bar(0) 0xe0000000", "+Bar(2) 0x1e0000000", "+Bar(4) 0xc000", "+Rom 0xfe000000"]);
}

#[test]
fn a_size_probe_reads_the_size_and_is_followed_by_a_move_as_well_as_by_the_old_address() {
    let (device, guest, _following) = device();
    place_all(&device);
    command(&device, 2);
    guest.told();
    write(&device, BAR2, u32::MAX);
    write(&device, BAR2 + 4, u32::MAX);
    let size = !(u64::from(dword(&device, BAR2) & !0xf) | u64::from(dword(&device, BAR2 + 4)) << 32) + 1;
    assert_eq!(size, SIZE);
    write(&device, BAR2, 0xd000_0000);
    assert_eq!(guest.told(), [""; 0], "half an address");
    write(&device, BAR2 + 4, 2);
    assert_eq!(guest.told(), ["-Bar(2) 0x1e0000000", "+Bar(2) 0x2d0000000"]);
}

/// For a BAR this large, the ones of a probe read back as a good address; what was written tells them apart.
#[test]
fn a_size_probe_of_a_huge_bar_is_no_address_and_its_top_address_is_no_size_probe() {
    support::start();
    let build = |size, at| {
        let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(size).wide().at(at)).build();
        let device = match device {
            Ok(device) => device,
            Err(e) => return Err(e),
        };
        let guest = Arc::new(Guest::default());
        let following = device.follow(Arc::clone(&guest) as _)?;
        Ok((device, guest, following))
    };
    for size in [1u64 << 30, 1 << 31, 1 << 33] {
        let (device, guest, _following) = match build(size, size) {
            Ok(built) => built,
            Err(e) => {
                support::skip(&format!("no BAR of {size:#x} bytes: {e}"), support::at_its_best());
                continue;
            }
        };
        guest.told();
        write(&device, BAR0, u32::MAX);
        write(&device, BAR0 + 4, u32::MAX);
        write(&device, BAR0, u32::try_from(size & 0xffff_ffff).expect("half") | 4);
        assert_eq!(guest.told(), [""; 0], "{size:#x}");
        write(&device, BAR0 + 4, u32::try_from(size >> 32).expect("half"));
        assert_eq!(guest.told(), [""; 0], "{size:#x}: it is where it was");
        // All ones above the size, and 0 below: an address.
        let top = 0x1_0000_0000u64.saturating_sub(size) & 0xffff_ffff;
        write(&device, BAR0 + 4, 16);
        guest.told();
        write(&device, BAR0, u32::try_from(top).expect("half") | 4);
        let moved = guest.places.lock().expect("a list").first().map(|place| place.address);
        assert_eq!(moved, Some(0x10_0000_0000 & !(size - 1) | top), "{size:#x}");
    }
}
