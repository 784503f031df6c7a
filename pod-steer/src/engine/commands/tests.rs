use super::*;
use crate::engine::{CommandState, fake::Fake};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn check() -> Vec<String> {
    ["/check", "it"].map(str::to_owned).into()
}

#[test]
fn the_exit_code_decides_and_the_last_line_is_shown() {
    let fake = Fake::default();
    fake.state().output = b"starting\nno database\n\n".to_vec();
    let mut commands = Commands::new(fake.clone(), "a");
    for (exit_code, expected) in [
        (Some(0), Outcome::Passed),
        (Some(7), Outcome::Failed(r#""/check it" exited with code 7; output: "no database""#.to_owned())),
        (None, Outcome::Unknown(r#"the engine did not report the exit code of "/check it""#.to_owned())),
    ] {
        fake.state().command = CommandState { is_running: false, exit_code };
        assert_eq!(block_on(commands.run(&check())), expected);
    }
    assert_eq!(fake.state().asked[..3], ["prepare a /check it", "run command", "state of command"]);
}

#[test]
fn a_command_does_not_start_while_an_earlier_one_runs() {
    let fake = Fake::default();
    let mut commands = Commands { engine: fake.clone(), id: "a".to_owned(), running: Some("earlier".to_owned()) };
    fake.state().command = CommandState { is_running: true, exit_code: None };
    let outcome = block_on(commands.run(&check()));
    assert!(matches!(&outcome, Outcome::Failed(text) if text.contains("is still running")), "{outcome:?}");
    assert_eq!(fake.state().asked, ["state of earlier"], "nothing was started");
    fake.state().command = CommandState { is_running: false, exit_code: Some(0) };
    assert_eq!(block_on(commands.run(&check())), Outcome::Passed);
}
