//! The kernel program's share of a connection's time: too little to be visible in throughputs, which vary by more from round to round,
//! but both of its parts are measured.

use crate::report::Report;

use crate::numbers;

/// The number of requests to which the reported processor time refers.
const REQUESTS: f64 = 100_000.0;

/// In a sentence, if the report has both parts.
pub fn told(report: &Report) -> Option<String> {
    let median = |section, row, key| Some(report.section(section)?.row(row)?.values.get(key)?.value.median);
    let run_ns = median("program", "services-1", "load_ns")?;
    let request_ns = median("new-connections", "direct", "cpu_s")? * 1e9 / REQUESTS;
    Some(format!(
        "The cost of the kernel program is smaller than the variation between rounds. One run of it under load, with one service, \
         took {} ns; a new connection with its request takes {} µs of the machine's processors (`direct`): {:.2}% of that.",
        numbers::short(run_ns),
        numbers::short(request_ns / 1e3),
        100.0 * run_ns / request_ns
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn one_run_is_a_part_of_a_request() {
        let mut report = sample::report();
        assert_eq!(told(&report), None);
        let mut program = report.sections[0].clone();
        program.name = "program".to_owned();
        program.rows[0].name = "services-1".to_owned();
        report.sections.push(program);
        sample::row(&mut report, "new-connections", "direct").values.insert("cpu_s".to_owned(), sample::alone(12.0));
        sample::row(&mut report, "program", "services-1").values.insert("load_ns".to_owned(), sample::alone(300.0));
        let told = told(&report).unwrap();
        assert!(told.contains("took 300 ns") && told.contains("takes 120 µs") && told.contains(": 0.25% of"), "{told}");
    }
}
