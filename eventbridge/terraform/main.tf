# Lifeboat's own queue: five kinds of events about EC2 instances come to it by EventBridge, and the
# controller reads it. The same as ../cloudformation.yaml; a test holds both to each other.

locals {
  kinds = toset([
    "spot-interruption",
    "rebalance-recommendation",
    "scheduled-change",
    "state-change",
    "capacity-reservation",
  ])
  tags    = { "lifeboat.dev/cluster" = var.cluster_name }
  rules   = [for kind in local.kinds : aws_cloudwatch_event_rule.kind[kind].arn]
  actions = var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]
}

resource "aws_sqs_queue" "queue" {
  name                       = "lifeboat-${var.cluster_name}"
  message_retention_seconds  = var.retention_seconds
  visibility_timeout_seconds = var.visibility_seconds
  receive_wait_time_seconds  = 20
  sqs_managed_sse_enabled    = var.kms_key_arn == "" ? true : null
  kms_master_key_id          = var.kms_key_arn == "" ? null : var.kms_key_arn
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead.arn
    maxReceiveCount     = var.max_receives
  })
  tags = local.tags
}

# What nobody could read, and what EventBridge could not deliver.
resource "aws_sqs_queue" "dead" {
  name                      = "lifeboat-${var.cluster_name}-dead"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = var.kms_key_arn == "" ? true : null
  kms_master_key_id         = var.kms_key_arn == "" ? null : var.kms_key_arn
  tags                      = local.tags
}

resource "aws_sqs_queue_redrive_allow_policy" "dead" {
  queue_url = aws_sqs_queue.dead.id
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.queue.arn]
  })
}

resource "aws_sqs_queue_policy" "queue" {
  queue_url = aws_sqs_queue.queue.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OurRulesMaySend"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.queue.arn
        Condition = { ArnEquals = { "aws:SourceArn" = local.rules } }
      },
      {
        Sid       = "NobodyWithoutTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = aws_sqs_queue.queue.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

resource "aws_sqs_queue_policy" "dead" {
  queue_url = aws_sqs_queue.dead.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OurRulesMaySend"
        Effect    = "Allow"
        Principal = { Service = "events.amazonaws.com" }
        Action    = "sqs:SendMessage"
        Resource  = aws_sqs_queue.dead.arn
        Condition = { ArnEquals = { "aws:SourceArn" = local.rules } }
      },
      {
        Sid       = "NobodyWithoutTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sqs:*"
        Resource  = aws_sqs_queue.dead.arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })
}

resource "aws_cloudwatch_event_rule" "kind" {
  for_each = local.kinds

  name_prefix   = "lifeboat-${each.key}-"
  description   = "Lifeboat ${var.cluster_name}: ${each.key}"
  event_pattern = file("${path.module}/../patterns/${each.key}.json")
  tags          = local.tags
}

# Each tries for five minutes: later nobody is helped, and the alarm on the dead-letter queue should
# tell that delivery does not work.
resource "aws_cloudwatch_event_target" "kind" {
  for_each = local.kinds

  rule      = aws_cloudwatch_event_rule.kind[each.key].name
  target_id = "lifeboat"
  arn       = aws_sqs_queue.queue.arn

  retry_policy {
    maximum_event_age_in_seconds = 300
    maximum_retry_attempts       = 185
  }

  dead_letter_config {
    arn = aws_sqs_queue.dead.arn
  }
}

resource "aws_cloudwatch_metric_alarm" "oldest_message" {
  alarm_name          = "lifeboat-${var.cluster_name}-oldest-message"
  alarm_description   = "Messages lie in Lifeboat's queue and nobody takes them: interruptions are heard by the agents alone. Look at the controller's pods, and at its role's rights to the queue."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = aws_sqs_queue.queue.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  threshold           = var.oldest_message_seconds
  comparison_operator = "GreaterThanThreshold"
  # A queue that is not used for long reports nothing.
  treat_missing_data = "notBreaching"
  alarm_actions      = local.actions
  ok_actions         = local.actions
  tags               = local.tags
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  alarm_name          = "lifeboat-${var.cluster_name}-dead-letters"
  alarm_description   = "Something came to Lifeboat's queue that no controller could read, or an event could not be delivered to it. Read the message and the controller's log, then redrive or purge."
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateNumberOfMessagesVisible"
  dimensions          = { QueueName = aws_sqs_queue.dead.name }
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 1
  threshold           = 0
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.actions
  ok_actions          = local.actions
  tags                = local.tags
}
