//! Expected texts are what Python's jinja2 gives with Hugging Face's settings.

use serde_json::json;

use super::*;

mod expected;

fn fixture(name: &str) -> Option<ChatTemplate> {
    let root = std::env::var_os("QUELEA_FIXTURES").map_or_else(
        || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures")),
        std::path::PathBuf::from,
    );
    let path = root.join("templates").join(name).with_extension("jinja");
    let Ok(source) = std::fs::read_to_string(&path) else {
        println!("skipped: no template at {}", path.display());
        return None;
    };
    Some(ChatTemplate::new(&source, "<s>", "</s>").unwrap())
}

fn messages(conversation: &[(&str, &str)]) -> Vec<Message> {
    conversation.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn extra(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn render(source: &str) -> Result<String, TemplateError> {
    let conversation = messages(&[("system", "sys"), ("user", "hi")]);
    ChatTemplate::new(source, "<s>", "</s>")?.render(&conversation, true, &Map::new())
}

#[test]
fn qwen2_5() {
    let Some(template) = fixture("Qwen-Qwen2.5-7B-Instruct.jinja") else { return };
    assert_eq!(
        template.render(&messages(&[("user", "Hi")]), true, &Map::new()).unwrap(),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let conversation = messages(&[("system", "Be brief."), ("user", "1"), ("assistant", "2"), ("user", "3")]);
    assert_eq!(
        template.render(&conversation, false, &Map::new()).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n\
         <|im_start|>user\n3<|im_end|>\n"
    );
}

#[test]
fn qwen3_drops_old_thoughts_and_takes_a_switch() {
    let Some(template) = fixture("Qwen-Qwen3-0.6B.jinja") else { return };
    let conversation = messages(&[("user", "1"), ("assistant", "<think>\nabc\n</think>\n\nyes"), ("user", "3")]);
    let text = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\n3<|im_end|>\n\
                <|im_start|>assistant\n";
    assert_eq!(template.render(&conversation, true, &Map::new()).unwrap(), text);
    let quiet = template.render(&conversation, true, &extra(json!({ "enable_thinking": false }))).unwrap();
    assert_eq!(quiet, [text, "<think>\n\n</think>\n\n"].concat());
    let tools = extra(json!({ "tools": [{ "name": "w", "n": 1.0 }] }));
    let text = template.render(&conversation, true, &tools).unwrap();
    assert!(text.contains("\n<tools>\n{\"name\": \"w\", \"n\": 1.0}\n</tools>\n"), "{text}");
}

#[test]
fn qwen3_tool_calls() {
    let Some(template) = fixture("Qwen-Qwen3-0.6B.jinja") else { return };
    let call = json!({ "function": { "name": "w", "arguments": { "city": "Zürich" } } });
    let conversation = [
        json!({ "role": "user", "content": "weather?" }),
        json!({ "role": "assistant", "content": "", "tool_calls": [call] }),
        json!({ "role": "tool", "content": "20" }),
    ];
    assert_eq!(
        template.render_values(&conversation, true, &Map::new()).unwrap(),
        "<|im_start|>user\nweather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n\
         {\"name\": \"w\", \"arguments\": {\"city\": \"Zürich\"}}\n</tool_call><|im_end|>\n\
         <|im_start|>user\n<tool_response>\n20\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn llama3_1() {
    let Some(template) = fixture("meta-llama-Llama-3.1-8B-Instruct.jinja") else { return };
    let conversation = messages(&[("system", " Be brief. "), ("user", "Hi")]);
    assert_eq!(
        template.render(&conversation, true, &Map::new()).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let dated = template.render(&conversation, true, &extra(json!({ "date_string": "1 Jan 2030" }))).unwrap();
    assert!(dated.contains("Today Date: 1 Jan 2030\n"), "{dated}");
}

#[test]
fn the_other_families() {
    for (name, conversation, expected) in [
        (
            "google-gemma-2-2b-it",
            &[("user", " Hi "), ("assistant", "x")][..],
            "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nx<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "mistralai-Mistral-Nemo-Instruct-2407.jinja",
            &[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
            "<s>[INST]a[/INST]b</s>[INST]s\n\nc[/INST]",
        ),
        ("microsoft-Phi-3.5-mini-instruct.jinja", &[("user", "Hi")], "<|user|>\nHi<|end|>\n<|assistant|>\n"),
        (
            "HuggingFaceTB-SmolLM3-3B",
            &[("system", "x /no_think"), ("user", "Hi")],
            "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nReasoning Mode: /no_think\n\n\
             ## Custom Instructions\n\nx\n\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\n<think>\n\n</think>\n",
        ),
    ] {
        let Some(template) = fixture(name) else { return };
        assert_eq!(template.render(&messages(conversation), true, &Map::new()).unwrap(), expected, "{name}");
    }
}

#[test]
fn a_refusal_is_told_in_the_templates_words() {
    let Some(template) = fixture("google-gemma-2-2b-it.jinja") else { return };
    let refused = template.render(&messages(&[("system", "s")]), true, &Map::new()).unwrap_err();
    assert!(matches!(refused, TemplateError::Refused { message } if message == "System role not supported"));
}

/// What templates take for granted of Python.
#[test]
fn values_print_and_behave_as_in_python() {
    for (source, expected) in [
        ("{{ [true, none, 1, 1.5, 'x', \"it's\", 'a\\nb'] }}", r#"[True, None, 1, 1.5, 'x', "it's", 'a\nb']"#),
        ("{{ ('a',) }}{{ {'a': 1, 'b': [none]} }}{{ nothing }}", "('a',){'a': 1, 'b': [None]}"),
        ("{{ ' a b '.strip() }}|{{ 'xxa'.lstrip('x') }}|{{ 'a\\n'.rstrip() }}", "a b|a|a"),
        (
            "{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a  b'.split() }}",
            "['a', 'b,c']['a,b', 'c']['a', 'b']",
        ),
        ("{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('b') }}", "TrueFalse"),
        (
            "{{ 'hello wORLD'.title() }}{{ 'ABC'.lower() }}{{ 'x y'.capitalize() }}{{ '12'.isdigit() }}",
            "Hello WorldabcX yTrue",
        ),
        (
            "{{ 'éabc'.find('b') }}{{ 'aba'.count('a') }}{{ 'aba'.replace('a', 'z', 1) }}{{ '-'.join(['a', 'b']) }}",
            "22zbaa-b",
        ),
        ("{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-') }}", "('a', '-', 'b-c')('a-b', '-', 'c')"),
        ("{{ 'aXbX'.rfind('X') }}{{ 'abca'.find('a', 1) }}{{ 'x'.index('x') }}{{ 'aaa'.count('a', 1) }}", "3302"),
        ("{{ ' a  b c '.split(none, 1) }}{{ ' a  b c '.rsplit(maxsplit=1) }}", "['a', 'b c '][' a  b', 'c']"),
        ("{{ 'a\r\nb\n\nc'.splitlines() }}{{ 'a\nb'.splitlines(true) }}", "['a', 'b', '', 'c']['a\\n', 'b']"),
        (
            "{{ \"they're x1y\".title() }}{{ 'aB'.swapcase() }}{{ 'ab'.isalpha() }}{{ 'AB1'.isupper() }}",
            "They'Re X1YAbTrueTrue",
        ),
        (
            "{{ '7'.zfill(3) }}{{ '-7'.zfill(4) }}{{ 'a'.ljust(3, '.') }}{{ 'a'.center(4, '.') }}{{ 'ab'.center(5, '.') }}",
            "007-007a...a....ab.",
        ),
        ("{{ '{} {} {{}} {0} {x}'.format(1, none, x=['a']) }}", "1 None {} 1 ['a']"),
        ("{{ [3, 1, 3].index(1) }}{{ [3, 1, 3].count(3) }}{{ 'abc'.startswith('b', 1) }}", "12True"),
        ("{{ messages[0].get('role') }}{{ messages[0].get('z') }}{{ messages[0].get('z', 1) }}", "systemNone1"),
        ("{{ messages[0].keys()|list }}{{ messages[0].values()|list }}", "['role', 'content']['system', 'sys']"),
        ("{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hi;"),
        ("{{ {'b': '<é>', 'a': [1, {}]}|tojson }}", r#"{"b": "<é>", "a": [1, {}]}"#),
        ("{{ {'b': '\"', 'a': []}|tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": [],\n  \"b\": \"\\\"\"\n}"),
        ("{{ [1, 2]|tojson(separators=(',', ':')) }}", "[1,2]"),
        (
            "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
        ("{%- generation -%} a {%- endgeneration %}{{ '{% generation %}' }}", "a{% if true %}"),
        ("{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ messages[::-1][0].role }}", "<s></s>Trueuser"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year >= 2025);
}

#[test]
fn broken_templates_are_errors() {
    assert!(matches!(render("{% if %}"), Err(TemplateError::Syntax(_))));
    assert!(matches!(render(&" ".repeat(MAX_SOURCE + 1)), Err(TemplateError::Source { .. })));
    for source in
        ["{{ nothing.role }}", "{{ 'a'.no_such() }}", "{{ nothing|tojson }}", "{{ 'a'.split('') }}", "{{ f() }}"]
    {
        assert!(matches!(render(source), Err(TemplateError::Failed(_))), "{source}");
    }
}

#[test]
fn hostile_templates_meet_a_bound() {
    let long = "{% for i in range(90000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}";
    assert!(matches!(render(long), Err(TemplateError::TooLong { .. })));
    let slow = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(slow), Err(TemplateError::TooMuchWork)));
    for source in [
        "{{ 'x' * 99999999 }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{{ s.replace('x', s) }}",
        "{% set s = 'x' * 1000000 %}{{ ''.join([s, s, s, s]) }}",
        "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{% set n = s.find('y') %}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(20000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[]) %}{% for j in range(90) %}{% for i in range(90000) %}\
         {% set ns.s = [[[[[[[[[[[[[[[[[[[[[[[[ns.s]]]]]]]]]]]]]]]]]]]]]]]] %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ {'a': 1}|tojson(indent=999999999) }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '%.*f' % (99999999, 1.5) }}",
        "{{ 'x'|indent(99999999) }}",
        "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{% set n = s|truncate(1, true, '', 0) %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{% set n = '%.1s' % s %}{% endfor %}",
        "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{% set n = '{!s:.1}'.format(s) %}{% endfor %}",
        "{% set s = '- ' * 500000 %}{% for i in range(90000) %}{% set n = s|wordcount %}{% endfor %}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn a_long_conversation_fits_the_budget() {
    for name in ["Qwen-Qwen3-0.6B.jinja", "meta-llama-Llama-3.1-8B-Instruct.jinja", "HuggingFaceTB-SmolLM3-3B.jinja"] {
        let Some(template) = fixture(name) else { return };
        let line = "x".repeat(950);
        let conversation: Vec<Message> =
            (0..1000).map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, line.clone())).collect();
        let text = template.render(&conversation, true, &Map::new()).unwrap();
        assert!(text.len() > 950_000, "{name}");
    }
}

/// A template with as many levels as the bound allows, of each kind that has no bound of its own.
fn deepest() -> Vec<(&'static str, String)> {
    let chains = [
        ("{{ x", "+1", " }}"),
        ("{{ x", "*1", " }}"),
        ("{{ x", "**1", " }}"),
        ("{{ x", "~1", " }}"),
        ("{{ x", ".a", " }}"),
        ("{{ x", "[0]", " }}"),
        ("{{ x", "[0:]", " }}"),
        ("{{ x", "()", " }}"),
        ("{{ x", "|upper", " }}"),
        ("{{ x", " is defined", " }}"),
        ("{{ x", " is not defined", " }}"),
        ("{{ x", " or 1", " }}"),
        ("{{ x", " and 1", " }}"),
        ("{{ x", " if 1", " }}"),
        ("{{ x", " if 1 else 2", " }}"),
        ("{{ ", "not ", "x }}"),
        ("{{ ", "-", "x }}"),
        ("{{ ", "(", "x }}"),
        ("{{ '%s'", " % 1", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ [1]", "+[1]", " }}"),
        ("{{ x(", "-", "y) }}"),
        ("{% set ", "(", "a = 1 %}"),
        ("{% set a", ".b", " = 1 %}"),
        ("{% filter upper", "|upper", " %}a{% endfilter %}"),
        ("{% if a %}", "{% elif b %}", "{% endif %}"),
        ("{% for a in b", ".c", " %}{% endfor %}"),
        ("{% macro m(a=1", "+b", ") %}{% endmacro %}{{ m() }}"),
    ];
    let chain = |(before, part, after): (&str, &'static str, &str)| {
        let each = source::operators(&part.repeat(64)).div_ceil(64);
        (part, [before, &part.repeat((MAX_OPERATORS - 16) / each), after].concat())
    };
    chains.into_iter().map(chain).collect()
}

#[test]
fn no_chain_overflows_a_stack() {
    // This thread has the stack of a worker, two megabytes: what is compiled here is dropped here as well.
    for (part, source) in deepest() {
        match ChatTemplate::new(&source, "", "") {
            // Rendering such a chain may well fail.
            Ok(template) => drop(template.render(&[], false, &Map::new())),
            Err(error) => assert!(matches!(error, TemplateError::Syntax(_)), "{part}: {error}"),
        }
        let more = source.replacen(part, &part.repeat(64), 1);
        let error = ChatTemplate::new(&more, "", "").unwrap_err();
        assert!(matches!(error, TemplateError::Operators { .. }), "{part}: {error}");
    }
}
