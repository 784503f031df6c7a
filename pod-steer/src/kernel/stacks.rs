//! The stack of every chain of calls, counted as kernels before 6.8 count it. A newer kernel, such as that of a developer's machine, loads
//! programs that those refuse.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya::include_bytes_aligned;
use aya_obj::{
    Object,
    generated::{
        BPF_ADD, BPF_ALU, BPF_ALU64, BPF_CALL, BPF_JMP, BPF_K, BPF_LDX, BPF_MOV, BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC,
        BPF_ST, BPF_STX, BPF_X, bpf_insn,
    },
};

/// `MAX_BPF_STACK`: bytes of a chain of calls.
const STACK_MAX: usize = 512;
/// `MAX_CALL_FRAMES`.
const FRAMES_MAX: usize = 8;
/// Each frame takes a multiple of it, and at least one (`check_max_stack_depth_subprog` of 6.7).
const ROUNDED_TO: usize = 32;
/// Number of the register that holds the frame's address.
const FRAME_REGISTER: u8 = 10;
const REGISTERS: usize = 11;
/// Those that a call overwrites: 0 to 5.
const OVERWRITTEN: usize = 6;

/// The functions of a program as it is loaded: its own first, then those that it calls.
struct Functions {
    instructions: Vec<bpf_insn>,
    /// Where each begins.
    starts: BTreeSet<usize>,
}

impl Functions {
    fn new(instructions: Vec<bpf_insn>) -> Self {
        let targets = instructions.iter().enumerate().filter_map(|(at, instruction)| target(at, instruction));
        let starts = targets.chain([0]).collect();
        Self { instructions, starts }
    }

    fn of(&self, start: usize) -> &[bpf_insn] {
        let end = self.starts.range(start + 1..).next().copied().unwrap_or(self.instructions.len());
        &self.instructions[start..end]
    }

    /// The rounded frames of the chain that takes the most.
    fn deepest(&self, start: usize, known: &mut BTreeMap<usize, Vec<usize>>) -> Vec<usize> {
        if let Some(chain) = known.get(&start) {
            return chain.clone();
        }
        let function = self.of(start);
        let called = function.iter().enumerate().filter_map(|(at, instruction)| target(start + at, instruction));
        let chains = called.map(|callee| self.deepest(callee, known)).collect::<Vec<_>>();
        let mut chain = vec![frame(function).max(1).next_multiple_of(ROUNDED_TO)];
        chain.extend(chains.into_iter().max_by_key(|chain| chain.iter().sum::<usize>()).unwrap_or_default());
        known.insert(start, chain.clone());
        chain
    }

    fn calls(&self, start: usize) -> usize {
        let called = self.of(start).iter().enumerate().filter_map(|(at, instruction)| target(start + at, instruction));
        1 + called.map(|callee| self.calls(callee)).max().unwrap_or(0)
    }
}

/// Where the function begins that an instruction calls, or whose address it loads: a callback runs above its caller's frame.
fn target(at: usize, instruction: &bpf_insn) -> Option<usize> {
    let is_call =
        u32::from(instruction.code) == BPF_JMP | BPF_CALL && u32::from(instruction.src_reg()) == BPF_PSEUDO_CALL;
    let is_address = instruction.code == LOAD_WIDE && u32::from(instruction.src_reg()) == BPF_PSEUDO_FUNC;
    (is_call || is_address).then(|| at.wrapping_add_signed(instruction.imm as isize + 1))
}

/// `BPF_LD | BPF_IMM | BPF_DW`.
const LOAD_WIDE: u8 = 0x18;

/// The bytes of a function's own frame: the lowest address that it makes from that of the frame.
fn frame(function: &[bpf_insn]) -> usize {
    let mut holds_frame = [false; REGISTERS];
    holds_frame[usize::from(FRAME_REGISTER)] = true;
    let mut lowest = 0;
    for instruction in function {
        let code = u32::from(instruction.code);
        let [to, from] = [instruction.dst_reg(), instruction.src_reg()].map(usize::from);
        // The classes have three bits, the operations the upper four, and the source one.
        match code & 0x07 {
            BPF_LDX => {
                if holds_frame[from] {
                    lowest = lowest.min(i32::from(instruction.off));
                }
                holds_frame[to] = false;
            }
            BPF_ST | BPF_STX if holds_frame[to] => lowest = lowest.min(i32::from(instruction.off)),
            BPF_ALU64 if code & 0xf8 == BPF_MOV | BPF_X => holds_frame[to] = holds_frame[from],
            BPF_ALU64 if code & 0xf8 == BPF_ADD | BPF_K && holds_frame[to] => {
                lowest = lowest.min(instruction.imm);
                holds_frame[to] = false;
            }
            BPF_ALU64 | BPF_ALU => holds_frame[to] = false,
            BPF_JMP if code & 0xf0 == BPF_CALL => holds_frame[..OVERWRITTEN].fill(false),
            _ => {
                if instruction.code == LOAD_WIDE {
                    holds_frame[to] = false;
                }
            }
        }
    }
    lowest.unsigned_abs() as usize
}

#[test]
fn kernels_before_6_8_have_enough_stack() {
    let objects: [&[u8]; 4] = [
        include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod-steer.bpf.o")),
        include_bytes_aligned!(concat!(env!("OUT_DIR"), "/judge.bpf.o")),
        include_bytes_aligned!(concat!(env!("OUT_DIR"), "/trace.bpf.o")),
        include_bytes_aligned!(concat!(env!("OUT_DIR"), "/idle.bpf.o")),
    ];
    let mut deepest = 0;
    for object in objects {
        let mut object = Object::parse(object).unwrap();
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_calls(&sections).unwrap();
        for (name, program) in &object.programs {
            let functions = Functions::new(object.functions[&program.function_key()].instructions.clone());
            let chain = functions.deepest(0, &mut BTreeMap::new());
            let bytes = chain.iter().sum();
            assert!(bytes <= STACK_MAX, "{name} needs {bytes} bytes of stack: {chain:?}");
            assert!(functions.calls(0) <= FRAMES_MAX, "{name} calls {} deep", functions.calls(0));
            deepest = deepest.max(bytes);
        }
    }
    assert!(deepest > STACK_MAX / 2, "{deepest}: these programs have larger frames");
}

#[test]
fn frames_are_counted() {
    let instruction = |code: u32, to: u8, from: u8, off: i16, imm: i32| {
        let mut instruction =
            bpf_insn { code: code as u8, _bitfield_align_1: [], _bitfield_1: Default::default(), off, imm };
        instruction.set_dst_reg(to);
        instruction.set_src_reg(from);
        instruction
    };
    let wide = 0x18;
    let store = |to: u8, off: i16| instruction(BPF_STX | wide | 0x60, to, 1, off, 0);
    let copy = |to: u8, from: u8| instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
    let add = |to: u8, imm: i32| instruction(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, imm);
    assert_eq!(frame(&[store(10, -8), store(10, -24), store(1, -100)]), 24);
    assert_eq!(frame(&[copy(2, 10), add(2, -48), store(2, -4)]), 48);
    assert_eq!(frame(&[copy(2, 10), copy(2, 1), add(2, -48)]), 0, "it holds something else by then");

    // The program calls one function, whose callback is another: 32, 64 and 32 bytes.
    let exit = instruction(BPF_JMP | 0x90, 0, 0, 0, 0);
    let call = |over: i32| instruction(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_CALL as u8, 0, over);
    let address = [instruction(LOAD_WIDE.into(), 2, BPF_PSEUDO_FUNC as u8, 0, 3), instruction(0, 0, 0, 0, 0)];
    let functions =
        Functions::new([&[call(1), exit, store(10, -40)], &address[..], &[exit, exit, store(10, -8), exit]].concat());
    assert_eq!(functions.deepest(0, &mut BTreeMap::new()), [32, 64, 32]);
    assert_eq!(functions.calls(0), 3);
}
