//! SSE, AVX, x87 and other instructions that KVM does not emulate, over an enabled, a busy and a disabled BAR: none of them
#![expect(unsafe_code, reason = "a plain memslot, to see what the machine can do")]
//! ends the virtual machine.

use super::guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Word, kvm_or_skip};
use super::{SLOT, STRATEGIES, bar, mapping, ones};
use crate::support;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use revocable_mmio::kvm::{ExitError, ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, Mapping, Region, Strategy};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// One instruction in protected mode with an operand at 0x80 of the BAR, and what stores its result to `VALUE`.
struct Instruction {
    name: &'static str,
    needs_avx: bool,
    code: &'static [u8],
    result: &'static [u8],
    /// What the result is, by the low double word of the operand.
    gives: fn(u32) -> u32,
    /// KVM's emulator knows it or tells that it does not. One instruction is emulated for ever instead (Linux 6.12).
    exits: bool,
}

fn same(value: u32) -> u32 {
    value
}

const EAX: &[u8] = &[0x26, 0xa3, 0x28, 0, 0, 0];
const XMM0: &[u8] = &[0x26, 0xf3, 0x0f, 0x7f, 0x05, 0x28, 0, 0, 0];
const ST0: &[u8] = &[0x26, 0xdd, 0x1d, 0x28, 0, 0, 0];

#[rustfmt::skip]
const LOADS: &[Instruction] = &[
    Instruction { name: "mov", needs_avx: false, code: &[0xa1, 0x80, 0, 0, 0], result: EAX, gives: same, exits: true },
    Instruction { name: "movdqu", needs_avx: false, code: &[0xf3, 0x0f, 0x6f, 0x05, 0x80, 0, 0, 0], result: XMM0, gives: same, exits: true },
    Instruction { name: "movntdqa", needs_avx: false, code: &[0x66, 0x0f, 0x38, 0x2a, 0x05, 0x80, 0, 0, 0], result: XMM0, gives: same, exits: true },
    Instruction { name: "vmovdqu", needs_avx: true, code: &[0xc5, 0xfe, 0x6f, 0x05, 0x80, 0, 0, 0], result: XMM0, gives: same, exits: true },
    Instruction { name: "fld", needs_avx: false, code: &[0xdb, 0xe3, 0xdd, 0x05, 0x80, 0, 0, 0], result: ST0, gives: same, exits: true },
    Instruction { name: "popcnt", needs_avx: false, code: &[0xf3, 0x0f, 0xb8, 0x05, 0x80, 0, 0, 0], result: EAX, gives: u32::count_ones, exits: true },
    Instruction { name: "lock xadd", needs_avx: false, code: &[0x31, 0xc0, 0xf0, 0x0f, 0xc1, 0x05, 0x80, 0, 0, 0], result: EAX, gives: same, exits: true },
];

/// Stores to 0x100 and above; the result is a constant.
#[rustfmt::skip]
const STORES: &[Instruction] = &[
    Instruction { name: "movdqu store", needs_avx: false, code: &[0x66, 0x0f, 0xef, 0xc0, 0xf3, 0x0f, 0x7f, 0x05, 0, 1, 0, 0], result: XMM0, gives: |_| 0, exits: true },
    Instruction { name: "vmovdqu store", needs_avx: true, code: &[0xc5, 0xfd, 0xef, 0xc0, 0xc5, 0xfe, 0x7f, 0x05, 0, 1, 0, 0], result: XMM0, gives: |_| 0, exits: true },
    Instruction { name: "fstp", needs_avx: false, code: &[0xdb, 0xe3, 0xd9, 0xee, 0xdd, 0x1d, 0, 1, 0, 0, 0x31, 0xc0], result: EAX, gives: |_| 0, exits: true },
    Instruction { name: "fxsave", needs_avx: false, code: &[0x31, 0xc0, 0x0f, 0xae, 0x05, 0, 2, 0, 0], result: EAX, gives: |_| 0, exits: false },
];

/// What the guest got.
#[derive(Debug, PartialEq)]
enum Got {
    Value(u32),
    NotEmulated,
    /// KVM took it for another instruction, and gave the guest an exception: this guest has no handler.
    Exception,
}

struct Machine {
    guest: Guest,
    exits: ExitHandler,
    slots: Memslots,
}

impl Machine {
    /// `None` if the machine cannot execute the instruction over ordinary memory either: it has no AVX, or its KVM emulates
    /// all of a guest's code.
    fn new(kvm: &Kvm, instruction: &Instruction) -> Option<Self> {
        let mut plain = Self::unchecked(kvm, instruction)?;
        let memory = memmap2::MmapOptions::new().len(BAR_LEN).map_anon().expect("64 KiB");
        let slot = kvm_userspace_memory_region {
            slot: SLOT,
            flags: 0,
            guest_phys_addr: BAR,
            memory_size: BAR_LEN as u64,
            userspace_addr: memory.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: the memory outlives the virtual machine, and nothing else uses it.
        unsafe { plain.guest.vm.set_user_memory_region(slot) }.expect("the slot is free");
        let executed = matches!(plain.guest.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _)));
        drop(plain);
        drop(memory);
        if executed { Self::unchecked(kvm, instruction) } else { None }
    }

    fn unchecked(kvm: &Kvm, instruction: &Instruction) -> Option<Self> {
        let mut code = [instruction.code, instruction.result, &[0xe6, 0x10][..]].concat();
        // Jumps back to the start.
        let back = u8::try_from(256 - (code.len() + 2)).expect("short");
        code.extend([0xeb, back]);
        let mut guest = Guest::new(kvm, Mode::Protected, &code);
        if !guest.with_vectors(kvm) && instruction.needs_avx {
            return None;
        }
        let slots = Memslots::new(Arc::clone(&guest.vm));
        let exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
        Some(Self { guest, exits, slots })
    }

    /// Lets the guest execute the instruction once.
    fn execute(&mut self) -> Got {
        self.guest.ram.set(Word::VALUE, 0x5eed);
        for _ in 0..1000 {
            match self.exits.handle(self.guest.vcpu.run()) {
                Ok(Handled::Reenter) => {}
                Ok(Handled::Again) => {
                    assert!(matches!(self.exits.again(&mut self.guest.vcpu), Ok(Handled::Reenter)));
                }
                Ok(Handled::Other(Ok(VcpuExit::IoOut(0x10, _)))) => return Got::Value(self.guest.ram.get(Word::VALUE)),
                Err(ExitError::NotEmulated { slot }) => {
                    assert_eq!(slot, Some(SLOT));
                    return Got::NotEmulated;
                }
                Ok(Handled::Other(Ok(VcpuExit::Shutdown))) => return Got::Exception,
                other => panic!("the virtual machine ends: {other:?}"),
            }
        }
        panic!("the guest makes no progress")
    }
}

/// Each instruction over each state of a BAR whose guest gets ones in some way: every one must have its right result.
fn every_instruction_in_every_state(
    retention: Retention,
    strategies: &[Strategy],
    mapped: fn(&Region) -> Arc<Mapping>,
) {
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, instruction) in strategies.iter().flat_map(|s| LOADS.iter().chain(STORES).map(move |i| (*s, i))) {
        let (name, gives) = (instruction.name, instruction.gives);
        if !instruction.exits && retention != Retention::AllOnes {
            continue;
        }
        let Some(mut machine) = Machine::new(&kvm, instruction) else {
            support::skip(&format!("{name}: this machine cannot execute it over ordinary memory"), false);
            continue;
        };
        let bar = bar(strategy);
        let slot = machine.slots.add(SLOT, BAR, mapped(&bar), retention).expect("the slot is free");
        let title = format!("{name} {strategy} {retention:?}");

        assert_eq!(machine.execute(), Got::Value(gives(PATTERN)), "{title}: enabled");
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let bar = &bar;
            let reset = scope.spawn(move || {
                bar.reset(move |_| {
                    tell.send(()).expect("it listens");
                    thread::sleep(Duration::from_millis(20))
                })
            });
            told.recv().expect("the reset begins");
            assert_eq!(machine.execute(), Got::Value(gives(PATTERN)), "{title}: busy");
            reset.join().expect("no panic").expect("it is reset");
        });
        assert_eq!((slot.stats().removals, slot.is_installed()), (0, true), "{title}: a reset takes no slot out");

        bar.owner().write::<u64>(0x100, 7).expect("the owner's view");
        bar.disable().expect("nothing is in the way");
        let first = machine.execute();
        if first == Got::Exception && retention != Retention::AllOnes {
            println!("{title}: an exception in the guest");
            continue;
        }
        assert_eq!(first, Got::Value(gives(u32::MAX)), "{title}: disabled");
        assert_eq!(machine.execute(), Got::Value(gives(u32::MAX)), "{title}: disabled");
        if retention == Retention::AllOnes {
            assert_eq!((slot.stats().removals, slot.stats().unsupported), (0, 0), "{title}: without an exit");
        }
        assert_eq!(bar.owner().read::<u64>(0x100), Ok(7), "{title}: a store reached revoked memory");
        bar.enable().expect("it comes back");
        assert_eq!(bar.owner().read::<u64>(0x100), Ok(7), "{title}: a store was kept for later");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(PATTERN), "{title}");
        assert_eq!(machine.execute(), Got::Value(gives(PATTERN)), "{title}: enabled again");
    }
}

#[test]
fn no_instruction_ends_the_machine_with_the_default_retention() {
    support::start();
    every_instruction_in_every_state(Retention::default(), &STRATEGIES, ones);
}

#[test]
fn a_slot_that_was_taken_out_comes_back_with_ones_for_what_cannot_be_emulated() {
    support::start();
    every_instruction_in_every_state(Retention::Remove, &[Strategy::Detach], ones);
}

#[test]
fn what_cannot_be_emulated_over_no_memory_is_an_error_and_the_guest_goes_on_after_enable() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in [Retention::Remove, Retention::Keep] {
        let mut refused = Vec::new();
        for instruction in LOADS.iter().chain(STORES).filter(|instruction| instruction.exits) {
            let (name, gives) = (instruction.name, instruction.gives);
            let Some(mut machine) = Machine::new(&kvm, instruction) else { continue };
            let bar = bar(Strategy::Detach);
            let _slot = machine.slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
            assert_eq!(machine.execute(), Got::Value(gives(PATTERN)), "{name}: enabled");
            bar.disable().expect("nothing is in the way");
            match machine.execute() {
                Got::NotEmulated => refused.push(name),
                Got::Exception => {
                    println!("{name} {retention:?}: an exception in the guest");
                    continue;
                }
                Got::Value(value) => assert_eq!(value, gives(u32::MAX), "{name}: disabled"),
            }
            let open = refused.last() == Some(&name);
            bar.enable().expect("it comes back");
            let again = machine.exits.again(&mut machine.guest.vcpu);
            assert!(!open || matches!(again, Ok(Handled::Reenter)), "{name} {retention:?}: {again:?}");
            drop(again);
            assert_eq!(machine.execute(), Got::Value(gives(PATTERN)), "{name} {retention:?}: enabled again");
        }
        println!("{retention:?}, policy Sigbus, not emulated: {refused:?}");
        assert!(!refused.contains(&"mov"), "{retention:?}");
    }
}
