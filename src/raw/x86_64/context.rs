//! The interrupted thread's registers, as the kernel saved them.

use crate::raw::table::Registers;
use core::ffi::c_int;
use nix::libc::{self, mcontext_t};

/// The index of each register in the saved context, by its number in an instruction's encoding.
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const RIP: usize = libc::REG_RIP.unsigned_abs() as usize;

fn index(register: u8) -> usize {
    REGISTERS[usize::from(register % 16)].unsigned_abs() as usize
}

fn address_in(register: i64) -> usize {
    usize::from_ne_bytes(register.to_ne_bytes())
}

impl Registers for mcontext_t {
    fn program_counter(&self) -> usize {
        address_in(self.gregs[RIP])
    }

    fn set_program_counter(&mut self, to: usize) {
        self.gregs[RIP] = i64::from_ne_bytes(to.to_ne_bytes());
    }

    fn get(&self, number: u8) -> usize {
        address_in(self.gregs[index(number)])
    }

    fn set(&mut self, number: u8, value: i8) {
        self.gregs[index(number)] = value.into();
    }
}
