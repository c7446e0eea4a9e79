//! The text of the accesses: instructions, and beside them the table entries of those that may fault.
//!
//! How the code learns of a fault costs nothing while there is none. Up to 32 bits, a load zero-extends into a 64-bit
//! register, and a fault sets that register to all ones: a bit that no value has. The others have no bit to spare, so
//! a fault zeroes the register that held the address, which no region starts at.
//!
//! An architecture's file brings its instructions and two texts: `register_numbers!`, which sets
//! `.Lrevocable_gpr_NAME` for every register, and `hand_over!`, the code of an initialiser.

/// What a code generation unit with accesses needs once: the numbers of the registers, and the initialiser that
/// registers the table of the linked object that the unit ends up in.
macro_rules! once_per_unit {
    () => {
        concat!(
            ".ifndef .Lrevocable_unit_{register}\n",
            ".set .Lrevocable_unit_{register}, 1\n",
            $crate::raw::arch::register_numbers!(),
            "\n",
            ".pushsection .text.revocable_mmio_register,\"ax\",%progbits\n",
            ".balign 4\n",
            ".hidden __start_revocable_mmio_recovery_1\n",
            ".hidden __stop_revocable_mmio_recovery_1\n",
            "9:\n",
            $crate::raw::arch::hand_over!(),
            "\n",
            ".popsection\n",
            ".pushsection .init_array,\"aw\",%init_array\n",
            ".balign 8\n",
            ".quad 9b\n",
            ".popsection\n",
            ".endif\n",
        )
    };
}
pub(in crate::raw) use once_per_unit;

/// The text of one table entry, and of what each code generation unit needs once.
///
/// `$at` faults; resume at `$to` with register `$set` set to `$value` (a byte, sign-extended), provided that the
/// fault's address is in the `$window` bytes from the address in register `$addr`. The `asm!` names the operand
/// `register = sym ...`.
macro_rules! recovery {
    ($at:literal => $to:literal, set $set:literal = $value:literal, addr $addr:literal + $window:literal) => {
        concat!(
            $crate::raw::table::text::once_per_unit!(),
            ".pushsection revocable_mmio_recovery_1,\"aR?\",%progbits\n",
            ".balign 4\n",
            ".long ",
            $at,
            " - .\n",
            ".long ",
            $to,
            " - .\n",
            ".byte .Lrevocable_gpr_",
            $set,
            ", .Lrevocable_gpr_",
            $addr,
            ", ",
            $window,
            ", ",
            $value,
            "\n",
            ".popsection"
        )
    };
}
pub(in crate::raw) use recovery;

/// One access by `$text`, whose instructions at `$label`s may fault. It names `{p}`, the address on the region's side,
/// and whatever operands follow. After a fault they hold nothing of use.
macro_rules! access {
    ($text:expr, $size:literal at $p:ident, faults at [$($label:literal),+], $($operands:tt)+) => {{
        let alive: usize;
        // SAFETY: one access of `$size` bytes at `$p`, within `raw`'s contract from the caller, which allows any
        // other writer.
        unsafe {
            core::arch::asm!(
                concat!("2: ", $text),
                "3:",
                $($crate::raw::table::text::recovery!($label => "3b", set "{p}" = "0", addr "{p}" + $size),)+
                p = inout(reg) $p => alive,
                register = sym $crate::raw::table::register,
                $($operands)+
            );
        }
        if alive == 0 { Err($crate::raw::Faulted) } else { Ok(()) }
    }};
}
pub(in crate::raw) use access;

/// One `access!` to a `$T`, by the text for its size.
macro_rules! access_by_size {
    ([$one:expr, $two:expr, $four:expr, $eight:expr], $T:ty, $($rest:tt)+) => {
        match <$T>::SIZE {
            1 => $crate::raw::table::text::access!($one, "1" $($rest)+),
            2 => $crate::raw::table::text::access!($two, "2" $($rest)+),
            4 => $crate::raw::table::text::access!($four, "4" $($rest)+),
            _ => $crate::raw::table::text::access!($eight, "8" $($rest)+),
        }
    };
}
pub(in crate::raw) use access_by_size;

/// `Accesses::load` and `Accesses::store`, by the instructions for 1, 2, 4 and 8 bytes. They move between memory at
/// `{p}` and the registers `{bits}` and `{value}`; the three narrow loads zero-extend.
macro_rules! loads_and_stores {
    (
        load: $load_1:literal, $load_2:literal, $load_4:literal, $load_8:literal;
        store: $($store:literal),+;
    ) => {
        #[inline(always)]
        unsafe fn load<T: Primitive>(p: *const T) -> Result<u64, Faulted> {
            macro_rules! narrow {
                ($text:literal, $size:literal) => {{
                    let bits: u64;
                    // SAFETY: one load within `raw`'s contract from the caller, which allows any other writer.
                    // `readonly`: like a volatile load, it orders nothing else.
                    unsafe {
                        core::arch::asm!(
                            concat!("2: ", $text),
                            "3:",
                            $crate::raw::table::text::recovery!("2b" => "3b", set "{bits}" = "-1", addr "{p}" + $size),
                            p = in(reg) p,
                            bits = lateout(reg) bits,
                            register = sym $crate::raw::table::register,
                            options(nostack, readonly, preserves_flags),
                        );
                    }
                    if bits >> 63 != 0 {
                        return Err(Faulted);
                    }
                    // SAFETY: either the load zero-extended, or it faulted and the top bit was set. Saves a second
                    // extension.
                    unsafe { core::hint::assert_unchecked(bits >> (8 * T::SIZE) == 0) };
                    Ok(bits)
                }};
            }
            match T::SIZE {
                1 => narrow!($load_1, "1"),
                2 => narrow!($load_2, "2"),
                4 => narrow!($load_4, "4"),
                _ => {
                    let bits;
                    $crate::raw::table::text::access!(
                        $load_8, "8" at p, faults at ["2b"],
                        bits = out(reg) bits,
                        options(nostack, readonly, preserves_flags),
                    )?;
                    Ok(bits)
                }
            }
        }

        #[inline(always)]
        unsafe fn store<T: Primitive>(p: *mut T, value: u64) -> Result<(), Faulted> {
            $crate::raw::table::text::access_by_size!(
                [$($store),+], T, at p, faults at ["2b"],
                value = in(reg) value,
                options(nostack, preserves_flags),
            )
        }
    };
}
pub(in crate::raw) use loads_and_stores;

/// `Rounds::rounds_out` by a loop. The loads from `{src}` stand at the labels of the second list, and what follows the loop
/// at 3. The loop ends when `{src}` is `{end}`.
macro_rules! rounds_out {
    ($dst:ident, $src:ident, $len:ident, [$($line:literal),+ $(,)?], [$($at:literal),+], $($clobbered:tt)+) => {{
        let stop: *const u8;
        // SAFETY: moves `$len` bytes from `$src` to `$dst`, within the caller's contract. Nothing else uses `$dst`
        // meanwhile; anything may use the region's memory.
        unsafe {
            core::arch::asm!(
                $($line,)+
                $($crate::raw::table::text::recovery!($at => "3b", set "{dst}" = "0", addr "{src}" + "128"),)+
                dst = inout(reg) $dst => _,
                src = inout(reg) $src => stop,
                end = in(reg) $src.wrapping_add($len),
                register = sym $crate::raw::table::register,
                $($clobbered)+
                options(nostack),
            );
        }
        stop.addr() - $src.addr()
    }};
}
pub(in crate::raw) use rounds_out;

/// `Rounds::rounds_in` by a loop. The stores to `{dst}` stand at the labels of the second list, each with the bytes of its
/// round that are stored before it, and what follows the loop at 3. The loop ends when `{dst}` is `{end}`.
macro_rules! rounds_in {
    (
        $dst:ident, $src:ident, $len:ident, [$($line:literal),+ $(,)?], [$($at:literal after $before:literal),+],
        $($clobbered:tt)+
    ) => {{
        let stop: *mut u8;
        let stored: usize;
        // SAFETY: moves `$len` bytes from `$src` to `$dst`, within the caller's contract. Nothing else writes `$src`
        // meanwhile; anything may use the region's memory.
        unsafe {
            core::arch::asm!(
                $($line,)+
                $($crate::raw::table::text::recovery!($at => "3b", set "{stored}" = $before, addr "{dst}" + "128"),)+
                dst = inout(reg) $dst => stop,
                src = inout(reg) $src => _,
                end = in(reg) $dst.wrapping_add($len),
                stored = inout(reg) 0usize => stored,
                register = sym $crate::raw::table::register,
                $($clobbered)+
                options(nostack),
            );
        }
        stop.addr() - $dst.addr() + stored
    }};
}
pub(in crate::raw) use rounds_in;
