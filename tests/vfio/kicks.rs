//! ioeventfds (section k).

use crate::devices::*;
use crate::suite::Suite;
use crate::syscalls::tmpfs_file;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use revocable_mmio::pci::{PciDevice, Width};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(1);

fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd")
}

/// The value at `at` as soon as it is `wanted`, or after a second.
fn settles(device: &PciDevice, at: usize, wanted: u32) -> String {
    let owner = device.owner(BAR2).expect("memory");
    let deadline = Instant::now() + PATIENCE;
    let mut value = owner.read::<u32>(at).expect("the owner's view");
    while value != wanted && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
        value = owner.read::<u32>(at).expect("the owner's view");
    }
    format!("{value:#x}")
}

/// What a read gets once the device has consumed the counter, or after a second.
fn consumed(event: &EventFd) -> String {
    let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
    let deadline = Instant::now() + PATIENCE;
    while poll(&mut fds, PollTimeout::ZERO).expect("an eventfd") > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let mut count = 0u64;
    // SAFETY: eight bytes of this thread's own.
    sys(unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) })
}

pub(crate) fn kicks(s: &mut Suite) {
    s.section("k");
    let device = ivshmem(s);
    let owner = device.owner(BAR2).expect("memory");
    let kick = event();
    let add = |offset: u64, width, value, fd: &EventFd| zero(device.add_ioeventfd(2, offset, width, value, fd.as_fd()));
    assert_eq!(add(0x40, Width::Four, 0xabcd_1234, &kick), "0");
    kick.write(1).expect("an eventfd");
    s.row("on: kick, value", settles(&device, 0x40, 0xabcd_1234));
    s.row("on: kick, value › eventfd counter consumed (read)", consumed(&kick));
    owner.write(0x40, 0u32).expect("the owner's view");
    off(&device);
    kick.write(1).expect("an eventfd");
    s.row("off: kick; eventfd read (EAGAIN = consumed)", consumed(&kick));
    on(&device);
    thread::sleep(Duration::from_millis(50));
    let value = owner.read::<u32>(0x40).expect("the owner's view");
    s.row("on again: value (0 = the write was dropped, not deferred)", format!("{value:#x}"));
    kick.write(1).expect("an eventfd");
    s.row("kick after on: value", settles(&device, 0x40, 0xabcd_1234));
    owner.write(0x40, 0u32).expect("the owner's view");
    off(&device);
    for _ in 0..50 {
        kick.write(1).expect("an eventfd");
    }
    consumed(&kick);
    on(&device);
    thread::sleep(Duration::from_millis(50));
    let value = owner.read::<u32>(0x40).expect("the owner's view");
    s.row("50 kicks while off, then on: value", format!("{value:#x}"));

    s.row("the same again (duplicate)", add(0x40, Width::Four, 0xabcd_1234, &kick));
    s.row("same address and data, other eventfd", add(0x40, Width::Four, 0xabcd_1234, &event()));
    s.row("same eventfd, other address", add(0x80, Width::Four, 0x55, &kick));
    s.row("misaligned offset (4 bytes @0x42)", add(0x42, Width::Four, 1, &event()));
    let narrow = [add(0x100, Width::One, 1, &event()), add(0x102, Width::Two, 2, &event())];
    s.row("1, 2 bytes", narrow.join(", "));
    let wide = event();
    s.row("8 bytes", add(0x108, Width::Eight, 0x0102_0304_0506_0708, &wide));
    let size = BIG as u64;
    let beyond = [add(size, Width::Four, 1, &kick), add(size - 2, Width::Four, 1, &kick)];
    s.row("offset at BAR size / crossing it", beyond.join(" / "));
    let file = tmpfs_file();
    let other = zero(device.add_ioeventfd(2, 0x200, Width::Four, 1, file.as_fd()));
    s.row("fd -2; a non-eventfd (file)", format!("-1 EINVAL; {other}"));
    s.more("a BAR that there is none of", zero(device.add_ioeventfd(1, 0, Width::Four, 1, kick.as_fd())), "-1 EINVAL");
    let remove = |offset, width, value| zero(device.remove_ioeventfd(2, offset, width, value));
    s.more("remove one that there is none of", remove(0x40, Width::Four, 0x1), "-1 ENODEV");
    s.more("remove with another width", remove(0x40, Width::Two, 0xabcd_1234), "-1 ENODEV");

    let early = event();
    early.write(1).expect("an eventfd");
    let added = add(0x300, Width::Four, 0x66, &early);
    s.row(
        "eventfd already signalled when set up: rc, value 100 ms later",
        format!("{added} {}", settles(&device, 0x300, 0x66)),
    );

    // A write of every width, and one that no single access can make.
    wide.write(1).expect("an eventfd");
    s.more("8 bytes, kicked", settles(&device, 0x108, 0x0506_0708), "0x5060708");
    let crooked = event();
    add(0x501, Width::Four, 0x1122_3344, &crooked);
    crooked.write(1).expect("an eventfd");
    s.more("4 bytes @0x501, kicked", settles(&device, 0x500, 0x2233_4400), "0x22334400");
    assert_eq!(remove(0x501, Width::Four, 0x1122_3344), "0");

    // On a busy device the write is made when it is free again.
    owner.write(0x40, 0u32).expect("the owner's view");
    let during = device.privileged(|device| {
        kick.write(1).expect("an eventfd");
        thread::sleep(Duration::from_millis(50));
        device.owner(BAR2).expect("memory").read::<u32>(0x40).expect("the owner's view")
    });
    s.more("kick while busy: value meanwhile", format!("{:#x}", during.expect("no other change")), "0x0");
    s.more("kick while busy: value after", settles(&device, 0x40, 0xabcd_1234), "0xabcd1234");

    // The recording had eight of them at this point, and so has this test.
    let mut more = 0;
    let refused = loop {
        let answer = add(0x1000 + 4 * more, Width::Four, 1, &early);
        if answer != "0" {
            break answer;
        }
        more += 1;
    };
    let live = 1000 - more;
    s.row("how many more until refused (others live: see above)", format!("{} then {refused}", more + live - 8));
    s.more("how many there are then", (more + live).to_string(), "1000");
    drop(kick);
    s.row("eventfd's last user fd closed: ioeventfd remove", remove(0x40, Width::Four, 0xabcd_1234));
    s.more("removed twice", remove(0x40, Width::Four, 0xabcd_1234), "-1 ENODEV");
}
