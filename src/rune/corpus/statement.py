"""The task out of the first message to an agent: the issue, not the manual around it."""

from __future__ import annotations

import re

_TAGS = (
    "pr_description",
    "issue_description",
    "problem_statement",
    "issue",
    "github_issue",
    "task_description",
    "task",
    "user_query",
)
_TAG = re.compile(rf"(?:^|\n)[ \t]*<({'|'.join(_TAGS)})>")
# What introduces the task: nothing that could stand in the middle of one.
_LEADS = re.compile(
    r"(?:\A|\n)ISSUE:[ \t]*\n"
    r"|\A[^\n]{0,60}?\b(?:solve|resolve|fix|address|implement|work on)\s+(?:the |this |these )?(?:following )?"
    r"(?:\w+ ){0,2}?(?:issue|problem|task|bug|ticket)s?(?: described)?(?: below)?:\s*"
    r"|\A.{0,500}?\bfollowing (?:PR|issue|problem|task)(?: description| text| statement)?:[ \t]*\n+"
    r"|\A#{1,3} (?:Task|Issue|Problem|Problem Statement|PR Description|Issue Description)[ \t]*\n+",
    re.IGNORECASE | re.DOTALL,
)
_BEFORE = re.compile(r"\A(?:Consider the following (?:PR|issue) description:|Issue:|Task:)\s*", re.IGNORECASE)
# Where the task ends and the tool's manual begins.
_MANUAL = re.compile(
    r"\n\s*(?:INSTRUCTIONS:|You can execute bash commands|You have access to|Your (?:task|response) (?:is|must)\b"
    r"|#{1,3} (?:Recommended Workflow|Important Rules|Command Execution Rules|Formatting your response|Instructions"
    r"|Task Instructions|Useful command examples|Workflow|Rules|Submission|Guidelines|Response Format|Tools)\b"
    r"|<(?:instructions|system_information|IMPORTANT|uploaded_files|rules|example_response|format_example)>"
    r"|IMPORTANT TIPS:|NOTE ABOUT THE EDIT COMMAND|Follow these (?:steps|phases)|Can you help me implement"
    r"|Remember, YOU (?:CAN|SHOULD)|\(Open file: |bash-\$\s*$|To finish, issue)",
)
# The same where nothing introduced the task: only what no issue would say.
_RULES = re.compile(
    r"\n\s*(?:INSTRUCTIONS:\n|You can execute bash commands|#{1,3} (?:Recommended Workflow|Important Rules"
    r"|Command Execution Rules|Formatting your response|Task Instructions)\b|<(?:instructions|system_information)>)",
)
_NOISE = re.compile(
    r"<(system-reminder|local-command-caveat|local-command-stdout|command-name|command-message|command-args"
    r"|environment_context|user_instructions|ide_opened_file|ide_selection)>(?:(?!<\1>).)*?</\1>",
    re.DOTALL,
)
_SLOT = re.compile(
    r"\{\{-?\s*(?:task|problem_statement|issue|instruction)[^}]*\}\}|\{(?:problem_statement|task|issue)\}"
)


def find(text: str, template: str = "") -> str:
    """The task in a message; with the template that made the message, exactly what was put into it."""
    text = _NOISE.sub("", text.replace("\r\n", "\n")).strip()
    if found := _by_template(text, template.replace("\r\n", "\n")):
        return _BEFORE.sub("", found).strip()
    if found := _tagged(text):
        return _BEFORE.sub("", found).strip() or text
    lead = _LEADS.search(text)
    rest = text[lead.end() :] if lead else text
    end = (_MANUAL if lead else _RULES).search(f"\n{rest}")
    found = rest[: max(end.start() - 1, 0)] if end else rest
    return _BEFORE.sub("", found).strip() or text


def _tagged(text: str) -> str:
    """What stands in the first of the known tags that is closed."""
    unclosed: set[str] = set()
    for match in _TAG.finditer(text):
        if match[1] not in unclosed:
            end = text.find(f"</{match[1]}>", match.end())
            if end >= 0:
                return text[match.end() : end].strip()
            unclosed.add(match[1])
    return ""


def _by_template(text: str, template: str) -> str:
    slot = _SLOT.search(template)
    if not slot:
        return ""
    before = re.split(r"\}\}|%\}|\}", template[: slot.start()])[-1].lstrip()
    after = re.split(r"\{\{|\{%|\{", template[slot.end() :])[0].rstrip()
    start = text.find(before) if before else 0
    if start < 0:
        return ""
    start += len(before)
    end = text.find(after, start) if after.strip() else len(text)
    return text[start:end].strip() if end >= 0 else ""
