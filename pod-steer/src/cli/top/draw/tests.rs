use ratatui::{Terminal, backend::TestBackend, style::Color};

use super::{super::fixture, *};

fn drawn(view: &mut View, board: &Board, away: Option<&Away>, (width, height): (u16, u16), colours: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let screen = Screen { board, away, palette: Palette { colours } };
    terminal.draw(|frame| draw(screen, view, frame.buffer_mut())).unwrap();
    terminal.backend().buffer().clone()
}

fn at(page: Page, size: (u16, u16)) -> String {
    plain(&drawn(&mut View::new(page), &fixture::board(), None, size, false))
}

#[test]
fn services_at_80_columns() {
    let expected = "\
pod-steer  12:00:10 UTC  1 condition  100 new/s  2202 live  2 services

web: ███░░░░░░░░░ canary v2: step 1 of 3, 10%, next in 30s
NAME   NEW/S   LIVE  STATE         GOT  WANTED  COND    QUEUE  OPENED
idle       0      2  1/1 ready       -  100.0%              -       4
  v1       0      2  1/1 ready       -  100.0%              -       4
web      100   2200  3/4 ready  100.0%  100.0%     1    3/384    4400
  v1    75.0   1875  2/2 ready   75.0%   90.0%          3/256    3750
  v2    25.0    325  1/2 ready   25.0%   10.0%     1    0/128     650






conditions
  backend v2-2 of web: its health check fails: 503; look at its log
q quit  ? help  enter open  c conditions  s sort  r reverse  / filter  p pause
";
    assert_eq!(at(Page::Services, (80, 18)), expected);
}

#[test]
fn a_service_at_200_columns() {
    let expected = "\
pod-steer  12:00:10 UTC  1 condition  100 new/s  2202 live  2 services  5 backends

web  80:8080  100 new/s
web: ███░░░░░░░░░ canary v2: step 1 of 3, 10%, next in 30s
NAME     NEW/S   LIVE  STATE         GOT  WANTED  COND    QUEUE  OPENED
v1        75.0   1875  2/2 ready   75.0%   90.0%          3/256    3750
  v1-1    50.0    750  ready       50.0%   45.0%          1/128    1500
  v1-2    25.0   1125  ready       25.0%   45.0%          2/128    2250
v2        25.0    325  1/2 ready   25.0%   10.0%     1    0/128     650
  v2-1    25.0    275  ready       25.0%   10.0%          0/128     550

conditions
  backend v2-2 of web: its health check fails: 503; look at its log
q quit  ? help  esc back  enter open  s sort  / filter  p pause
";
    assert_eq!(at(Page::Service("web".to_owned()), (200, 14)), expected);
}

#[test]
fn an_operation_has_a_column_if_there_is_room() {
    let text = at(Page::Services, (200, 18));
    let title = text.lines().nth(2).unwrap_or_default();
    let row = text.lines().find(|line| line.starts_with("web ")).unwrap_or_default();
    assert!(title.ends_with("  OPENED  OPERATION"), "{text}");
    assert!(row.ends_with("    4400  ███░░░░░░░░░ canary v2: step 1 of 3, 10%, next in 30s"), "{text}");
}

#[test]
fn a_backend_has_its_conditions_with_remedies() {
    let text = at(Page::Backend("web".to_owned(), "id-v2-2".to_owned()), (80, 30));
    for told in [
        "v2-2\n",
        "service         web 80:8080, version v2\n",
        "state           unhealthy\n",
        "share           0.0% wanted, 0.0% got in the last 10 s\n",
        "sockets         2 listening\n",
        "accept queues   not known\n",
        "Conditions\n  its health check fails: 503 (no-cgroup)\n    → look at its log\n",
        "web: every lookup found a socket at once\n",
    ] {
        assert!(text.contains(told), "{told} is not in\n{text}");
    }
    let gone = at(Page::Backend("web".to_owned(), "nope".to_owned()), (80, 30));
    assert!(gone.contains("This backend is gone"), "{gone}");
}

#[test]
fn a_daemon_that_is_away_is_named() {
    let away = Away { since_ms: fixture::AT_MS + 5_000, reason: "pod-steer is not running".to_owned() };
    let mut view = View::new(Page::Services);
    let text = plain(&drawn(&mut view, &fixture::board(), Some(&away), (80, 18), false));
    assert!(text.contains("\ndaemon not reachable since 12:00:15 UTC, retrying: pod-steer is not running\n"), "{text}");
    assert!(text.contains("web  "), "the last answer stays: {text}");
    view.paused = true;
    view.filter = "v1".to_owned();
    let text = plain(&drawn(&mut view, &fixture::board(), None, (80, 18), false));
    assert!(text.contains("paused: p goes on; only names with \"v1\": esc shows all"), "{text}");
}

#[test]
fn no_size_panics() {
    let mut board = fixture::board();
    board.services[0].row.name = "商店前端服务商店前端服务商店前端服务".to_owned();
    let away = Away { since_ms: 0, reason: "x".repeat(300) };
    for page in [
        Page::Services,
        Page::Everything,
        Page::Service("web".to_owned()),
        Page::Service("gone".to_owned()),
        Page::Backend("web".to_owned(), "id-v2-2".to_owned()),
        Page::Conditions,
        Page::Help,
    ] {
        let mut view = View::new(page.clone());
        for (width, height) in [(1, 1), (2, 3), (5, 2), (20, 5), (20, 12), (40, 10), (80, 24), (300, 100)] {
            for away in [None, Some(&away)] {
                drawn(&mut view, &board, away, (width, height), true);
            }
        }
        view.typing = true;
        drawn(&mut view, &board, None, (20, 5), true);
    }
    let small = at(Page::Services, (20, 5));
    assert!(small.lines().count() == 5 && small.contains("NAME") && small.contains("idle"), "{small}");
}

#[test]
fn a_name_is_cut_only_if_it_fits_nowhere() {
    let mut board = fixture::board();
    let long = format!("sha256-{}", "0123456789abcdef".repeat(4));
    board.services[1].versions[0].0.name = long.clone();
    let shown = |width| plain(&drawn(&mut View::new(Page::Services), &board, None, (width, 18), false));
    assert!(shown(90).contains(&long), "{}", shown(90));
    let narrow = shown(60);
    assert!(narrow.contains("sha256-01") && narrow.contains("9abcdef  "), "its begin and its end: {narrow}");
}

#[test]
fn colours_are_used_where_they_are_wanted() {
    let board = fixture::board();
    let colours = |wanted: bool| {
        let buffer = drawn(&mut View::new(Page::Services), &board, None, (80, 18), wanted);
        buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(colours(true) && !colours(false));
}
