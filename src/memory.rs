//! The memory that this program has allocated, and the limit on it: an allocator that counts, and the budget of a server.
//!
//! A static, because a program has one allocator. May not enter: what is given up when the budget is spent
//! (`worker/shed.rs`).

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// Bytes that are allocated, except for what threads have not added yet.
static IN_USE: AtomicIsize = AtomicIsize::new(0);

/// What a thread counts for itself before it adds the sum, and what a thread that ends may leave uncounted. Chosen: what a
/// message allocates and frees is never added.
const UNADDED: usize = 16 << 10;

thread_local! {
    static OWN: Cell<isize> = const { Cell::new(0) };
}

/// An allocator that counts the bytes in use, for [`Limits::memory`](crate::Limits::memory): the limit holds in programs
/// whose global allocator is a `Metered` one. Counts what is asked for; an allocator may use a quarter more.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: webws::Metered<std::alloc::System> = webws::Metered::new(std::alloc::System);
/// ```
#[derive(Debug)]
pub struct Metered<A>(A);

impl<A> Metered<A> {
    /// Counts what `allocator` gives.
    pub const fn new(allocator: A) -> Self {
        Self(allocator)
    }
}

/// Adds to the bytes in use. Neither allocates nor panics.
fn count(bytes: isize) {
    // The cell has no destructor, so it is there until the thread is gone.
    let add = OWN.try_with(|own| {
        let sum = own.get().wrapping_add(bytes);
        if sum.unsigned_abs() < UNADDED {
            own.set(sum);
            return 0;
        }
        own.set(0);
        sum
    });
    match add.unwrap_or(bytes) {
        0 => {}
        sum => drop(IN_USE.fetch_add(sum, Ordering::Relaxed)),
    }
}

// An allocation is smaller than isize::MAX (`Layout`), so the conversions below keep its size.
// SAFETY: each call is passed on as it is, and `count` neither allocates nor unwinds.
#[expect(unsafe_code, reason = "a global allocator is unsafe to implement")]
#[expect(clippy::cast_possible_wrap, reason = "no layout is larger than isize::MAX")]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Metered<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that the inner allocator needs.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { self.0.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count((size as isize).wrapping_sub(layout.size() as isize));
        // SAFETY: as above.
        unsafe { self.0.realloc(memory, layout, size) }
    }
}

/// Bytes in use, as far as the program's allocator counts them.
fn in_use() -> usize {
    usize::try_from(IN_USE.load(Ordering::Relaxed)).unwrap_or(0)
}

/// What the process may use beyond what it uses at a server's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    base: usize,
    max: usize,
    gauge: fn() -> usize,
}

impl Budget {
    /// `max` bytes from now on.
    pub(crate) fn new(max: usize) -> Self {
        Self::with_gauge(max, in_use)
    }

    pub(crate) fn with_gauge(max: usize, gauge: fn() -> usize) -> Self {
        Self { base: gauge(), max, gauge }
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Bytes in use since the start.
    pub(crate) fn used(&self) -> usize {
        (self.gauge)().saturating_sub(self.base)
    }

    /// Whether more is in use than may be.
    pub(crate) fn is_spent(&self) -> bool {
        self.used() > self.max
    }

    /// Whether an eighth of the budget is free: what was given up suffices.
    pub(crate) fn has_room(&self) -> bool {
        self.used() <= self.max - self.max / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::System;

    static ALLOCATOR: Metered<System> = Metered::new(System);

    #[test]
    #[expect(unsafe_code, reason = "calls an allocator")]
    fn what_is_allocated_is_counted_until_it_is_freed_also_by_another_thread() {
        let before = in_use();
        let layout = Layout::from_size_align(1 << 20, 8).unwrap();
        // SAFETY: the size is not 0.
        let memory = unsafe { ALLOCATOR.alloc(layout) } as usize;
        let held = in_use() - before;
        assert!(held >= (1 << 20) - UNADDED, "{held}");
        // SAFETY: the memory is that of the layout.
        let larger = unsafe { ALLOCATOR.realloc(memory as *mut u8, layout, 3 << 20) } as usize;
        let held = in_use() - before;
        assert!(held >= (3 << 20) - 2 * UNADDED, "{held}");
        let free = move || {
            let layout = Layout::from_size_align(3 << 20, 8).unwrap();
            // SAFETY: the memory is that of the layout, and freed once.
            unsafe { ALLOCATOR.dealloc(larger as *mut u8, layout) };
        };
        std::thread::spawn(free).join().unwrap();
        assert!(in_use() <= before + 3 * UNADDED);
    }

    #[test]
    fn a_budget_counts_from_the_start() {
        static USED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(5_000);
        let budget = Budget::with_gauge(800, || USED.load(Ordering::Relaxed));
        for (used, is_spent, has_room) in
            [(4_000, false, true), (5_700, false, true), (5_800, false, false), (5_801, true, false)]
        {
            USED.store(used, Ordering::Relaxed);
            assert_eq!((budget.is_spent(), budget.has_room()), (is_spent, has_room), "{used}");
        }
    }
}
